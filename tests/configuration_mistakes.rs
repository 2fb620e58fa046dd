//! What is wrong with a configuration file is told all at once, in order: where, what was found, and
//! what is allowed.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use support::{Host, Program, TempDir};

/// What is told of a file with this text: `LINE:COLUMN: MESSAGE` each. The proxy says the same as
/// `config check`.
#[track_caller]
fn mistakes(text: impl AsRef<[u8]>) -> Vec<String> {
    let directory = TempDir::new();
    let file = directory.path("realpeer.toml");
    fs::write(&file, text).expect("write a temporary file");
    mistakes_of(file.to_str().expect("temporary paths are UTF-8"))
}

#[track_caller]
fn mistakes_of(file: &str) -> Vec<String> {
    let host = Host::new("server");
    let checked = Program::Realpeer.run(&host, &["config", "check", file]);
    assert_eq!((checked.code, checked.stdout.as_str()), (1, ""), "{file}");
    let started = Program::Realpeer.run(&host, &["-config", file]);
    assert_eq!(started.code, 1);
    assert_eq!(started.stderr, checked.stderr);
    assert_eq!(started.stdout, "");
    let lines = checked.stderr.lines().map(|line| {
        let told = line.strip_prefix(file).and_then(|l| l.strip_prefix(':'));
        told.unwrap_or_else(|| panic!("{line:?} does not begin with {file}:"))
            .to_owned()
    });
    lines.collect()
}

/// Each line begins with one of `expected` and has its other words.
#[track_caller]
fn assert_told(told: &[String], expected: &[(&str, &[&str])]) {
    let fits = |(line, (start, words)): (&String, &(&str, &[&str]))| {
        line.starts_with(start) && words.iter().all(|word| line.contains(word))
    };
    let all = told.iter().zip(expected).all(fits);
    assert!(
        all && told.len() == expected.len(),
        "{told:#?}\nis not\n{expected:#?}"
    );
}

#[test]
fn all_mistakes_are_told_at_once_in_their_order() {
    let told = mistakes(
        r#"workers = 0
drain-timout = "5s"

[[listener]]
name = "ssh"
listen = ":2222"
max-conections-per-client = 5
ipv4 = "127.0.0.1:2222"

[[listener]]
name = "ssh"
listen = ["192.0.2.10:2222", "nonsense"]
udp-header = "spp"
untrusted = "serve"

[[listener]]
listen = ":5300"
protocol = "udp"
connect-timeout = 5
denied-clients = "/no/such/file"
"#,
    );
    assert_told(
        &told,
        &[
            ("1:11: workers: found 0; ", &["from 1 to 1024"]),
            (
                "2:1: unknown key drain-timout; did you mean drain-timeout?",
                &[],
            ),
            (
                "7:1: unknown key max-conections-per-client; did you mean max-connections-per-client?",
                &[],
            ),
            ("8:8: ipv4: 127.0.0.1:2222 ", &["would loop"]),
            ("11:8: name: ", &["\"ssh\""]),
            ("12:10: listen: 192.0.2.10:2222 ", &["\"ssh\"", "[::]:2222"]),
            ("12:30: listen: found \"nonsense\"; ", &["ADDRESS:PORT"]),
            (
                "13:1: udp-header ",
                &["listener of tcp", "protocol = \"udp\""],
            ),
            ("14:13: untrusted: ", &["allowed-subnets"]),
            ("16:1: this listener has no name", &["name = "]),
            (
                "19:1: connect-timeout ",
                &["listener of udp", "protocol = \"tcp\""],
            ),
            (
                "20:18: denied-clients: ",
                &["/no/such/file", "No such file"],
            ),
        ],
    );
}

#[test]
fn a_value_is_told_with_what_was_found_and_what_is_allowed() {
    for (line, found, allowed) in [
        ("listen = 22", "22", "an address in quotes, or a list"),
        ("listen = []", "an empty list", "an address in quotes"),
        ("listen = \"2222\"", "\"2222\"", "ADDRESS:PORT"),
        ("listen = [\":22\", 23]", "23", "an address in quotes"),
        ("ipv4 = \"[::1]:22\"", "\"[::1]:22\"", "ipv6"),
        ("ipv6 = \"127.0.0.1:22\"", "\"127.0.0.1:22\"", "ipv4"),
        ("ipv6 = [\"[::1]:22\"]", "a list", "a string"),
        ("ipv6 = { port = 22 }", "a table", "a string"),
        ("listen-transparent = \"yes\"", "\"yes\"", "true or false"),
        ("listen-transparent = 1", "1", "true or false"),
        ("protocol = \"sctp\"", "\"sctp\"", "tcp or udp"),
        ("source-port = \"some\"", "\"some\"", "keep, any or strict"),
        ("routing-mode = \"x\"", "\"x\"", "loopback"),
        ("mark = \"5\"", "\"5\"", "a whole number"),
        ("mark = 5.0", "5.0", "a whole number"),
        ("mark = -1", "-1", "from 0 to 4294967295"),
        ("mark = 0x1_0000_0000", "0x100000000", "from 0 to"),
        (
            "mark = 99999999999999999999",
            "99999999999999999999",
            "too large",
        ),
        (
            "mark = 1979-05-27T07:32:00Z",
            "1979-05-27T07:32:00Z",
            "a whole number",
        ),
        (
            "header-timeout = 1979-05-27",
            "1979-05-27",
            "\"10s\", or whole seconds",
        ),
        ("header-timeout = 2.5", "2.5", "\"10s\", or whole seconds"),
        ("header-timeout = \"soon\"", "\"soon\"", "10s"),
        ("header-timeout = 0", "0", "longer than zero"),
        ("header-timeout = -1", "-1", "negative"),
        ("connection-rate-per-client = \"10\"", "\"10\"", "10/s"),
        ("max-connections-per-client = 0", "0", "the least"),
        (
            "allow-claims = [\"127.0.0.1\"]",
            "\"127.0.0.1\"",
            "never be allowed",
        ),
        ("allow-claims = 5", "5", "CIDR"),
        (
            "allowed-subnets = [\"10.0.0.0/33\"]",
            "\"10.0.0.0/33\"",
            "10.0.0.0/8",
        ),
        (
            "allowed-subnets = true",
            "true",
            "the name of a file, or a list",
        ),
        ("allowed-clients = []", "an empty list", "leave it out"),
        ("name = \"a b\"", "\"a b\"", "letters, digits"),
        ("name = 5", "5", "a string"),
    ] {
        let rest = match line.starts_with("name") {
            true => "",
            false => "name = \"a\"\n",
        };
        let told = mistakes(format!("[[listener]]\n{rest}{line}\n"));
        let key = line.split(' ').next().expect("a key");
        // A wrong bound is told without what it is.
        let allowed = if allowed == "the least" {
            "from 1"
        } else {
            allowed
        };
        let found = format!("{key}: found {found}");
        assert_told(
            &told,
            &[(
                if rest.is_empty() { "2:" } else { "3:" },
                &[&found, allowed],
            )],
        );
    }
}

#[test]
fn an_unknown_key_is_told_with_the_nearest_or_all_that_there_are() {
    let listener = |line: &str| mistakes(format!("[[listener]]\nname = \"a\"\n{line}\n"));
    for (key, meant) in [
        ("header_timeout", "header-timeout"),
        ("ip4", "ipv4"),
        ("l", "listen"),
        ("4", "ipv4"),
        ("a", "allowed-subnets"),
        ("nmae", "name"),
    ] {
        // A key of one letter may be another's beginning, but is a flag.
        let told = listener(&format!("{key} = 1"));
        let expected = format!("3:1: unknown key {key}; did you mean {meant}?");
        assert_told(&told, &[(&expected, &[])]);
    }
    let told = listener("zzz = 1");
    assert_told(
        &told,
        &[("3:1: unknown key zzz; allowed here are ", &["listen, ipv4"])],
    );

    // What stands in the wrong table.
    let told = listener("workers = 2\ndrain-timout = 5");
    let above = "write it above the first [[listener]]";
    assert_told(
        &told,
        &[
            ("3:1: workers belongs to the process", &[above]),
            (
                "4:1: unknown key drain-timout; did you mean drain-timeout?",
                &[above],
            ),
        ],
    );
    let told = mistakes("ipv4 = \"127.0.0.1:22\"\nlisteener = 1\n[[listener]]\nname = \"a\"\n");
    assert_told(
        &told,
        &[
            ("1:1: ipv4 belongs to a listener", &["below a [[listener]]"]),
            ("2:1: unknown key listeener; did you mean listener?", &[]),
        ],
    );
}

#[test]
fn errors_of_syntax_are_told_with_all_the_others() {
    let told = mistakes(
        r#"workers = 2
workers = 3
routing =
drain-timeout = "soon"
[[listener]]
name = "a
listen = 5
zzz = 1
"#,
    );
    assert_told(
        &told,
        &[
            ("2:1: duplicate key", &["workers"]),
            ("3:", &["expected"]),
            ("4:17: drain-timeout: found \"soon\"; ", &[]),
            ("6:", &["invalid basic string"]),
            ("7:10: listen: found 5; ", &[]),
            ("8:1: unknown key zzz; ", &[]),
        ],
    );
    // A table without its head is no reason to say that its keys stand in the wrong one.
    let told = mistakes("[[listener]\nname = \"a\"\nlisten = \":22\"\n");
    assert_told(&told, &[("1:12: unclosed array table", &["]"])]);
    assert_told(&mistakes("a = \"ü\" x\n"), &[("1:9: ", &[])]);
}

#[test]
fn a_file_without_a_listener_is_refused() {
    for (text, place) in [
        ("", "1:1"),
        ("# nothing\nworkers = 1\n", "1:1"),
        ("listener = []\n", "1:1"),
    ] {
        let told = mistakes(text);
        assert_told(&told, &[(place, &["there is no [[listener]]"])]);
    }
    for text in [
        "[listener]\nname = \"a\"\n",
        "listener = 5\n",
        "listener = [5]\n",
    ] {
        let told = mistakes(text);
        assert_told(&told, &[("1:", &["write [[listener]]"])]);
    }
}

#[test]
fn one_name_or_one_address_twice_is_refused() {
    let both = |first: &str, second: &str| {
        format!("[[listener]]\nname = \"a\"\n{first}\n[[listener]]\nname = \"b\"\n{second}\n")
    };
    for (first, second) in [
        (":22", ":22"),
        ("0.0.0.0:22", "192.0.2.1:22"),
        ("192.0.2.1:22", "0.0.0.0:22"),
        ("[::]:22", "192.0.2.1:22"),
        ("192.0.2.1:22", "[::]:22"),
        ("[::]:22", "0.0.0.0:22"),
        ("[::]:22", "[2001:db8::1]:22"),
        ("[::ffff:192.0.2.1]:22", "192.0.2.1:22"),
    ] {
        let told = mistakes(both(
            &format!("listen = [\"127.0.0.1:21\", \"{first}\"]"),
            &format!("listen = \"{second}\""),
        ));
        assert_told(&told, &[("6:10: listen: ", &["is taken by \"a\""])]);
    }
    let told = mistakes(both(
        "listen = [\":22\", \"192.0.2.1:22\"]",
        "listen = \":23\"",
    ));
    assert_told(
        &told,
        &[("3:10: listen: 192.0.2.1:22 is covered by [::]:22", &[])],
    );
    // The default is an address, too.
    let told = mistakes(both("", "listen = \":8443\""));
    assert_told(&told, &[("6:10: listen: ", &["\"a\"", "0.0.0.0:8443"])]);
    let three = "[[listener]]\nname = \"a\"\nlisten = \":PORT\"\n";
    let three: Vec<String> = ["1", "2", "3"]
        .map(|port| three.replace("PORT", port))
        .into();
    let told = mistakes(three.concat());
    let twice = "another listener is called \"a\" already";
    assert_told(
        &told,
        &[("5:8: name: ", &[twice]), ("8:8: name: ", &[twice])],
    );

    for (first, second) in [
        ("listen = \":22\"", "listen = \":22\"\nprotocol = \"udp\""),
        ("listen = \"192.0.2.1:22\"", "listen = \"192.0.2.2:22\""),
        ("listen = \"0.0.0.0:22\"", "listen = \"[2001:db8::1]:22\""),
        ("listen = \":22\"", "listen = \":23\""),
        ("listen = \"[fe80::1%1]:22\"", "listen = \"[fe80::1%2]:22\""),
    ] {
        assert_good(&both(first, second));
    }
}

#[test]
fn a_loop_within_the_process_is_refused() {
    let file = |rows: &[(&str, &str, &str)]| {
        let section = |(name, listen, rest): &(&str, &str, &str)| {
            format!("[[listener]]\nname = \"{name}\"\nlisten = \"{listen}\"\n{rest}\n")
        };
        rows.iter().map(section).collect::<String>()
    };
    let told = mistakes(file(&[("a", ":22", "ipv6 = \"[::1]:22\"")]));
    assert_told(&told, &[("4:8: ipv6: [::1]:22 ", &["would loop"])]);
    let told = mistakes(file(&[
        ("a", ":1", "ipv4 = \"127.0.0.1:2\""),
        ("b", "127.0.0.1:2", "ipv4 = \"127.0.0.1:3\""),
        ("c", "0.0.0.0:3", "ipv4 = \"127.0.0.1:1\""),
    ]));
    let next = |name: &str| format!("is the listener \"{name}\", which leads back here");
    assert_told(
        &told,
        &[
            ("4:8: ipv4: 127.0.0.1:2 ", &[&next("b")]),
            ("8:8: ipv4: 127.0.0.1:3 ", &[&next("c")]),
            ("12:8: ipv4: 127.0.0.1:1 ", &[&next("a")]),
        ],
    );
    // One behind the other is none, and UDP does not lead to TCP.
    assert_good(&file(&[
        ("a", ":1", "ipv4 = \"127.0.0.1:2\""),
        ("b", "127.0.0.1:2", "ipv4 = \"127.0.0.1:22\""),
    ]));
    assert_good(&file(&[
        ("a", ":1", "ipv4 = \"127.0.0.1:2\""),
        ("b", ":2", "ipv4 = \"127.0.0.1:1\"\nprotocol = \"udp\""),
    ]));
}

#[test]
fn a_list_that_cannot_be_read_is_told_at_its_key() {
    let directory = TempDir::new();
    let (bad, empty) = (
        directory.file("bad", "\nnonsense\n"),
        directory.file("empty", ""),
    );
    for (value, why) in [
        ("/no/such/list", "No such file"),
        (bad.as_str(), "line 2"),
        (empty.as_str(), "lists no network"),
        ("/tmp", "Is a directory"),
    ] {
        for key in ["allowed-subnets", "allowed-clients"] {
            let text = format!("[[listener]]\nname = \"a\"\n{key} = \"{value}\"\n");
            let start = format!("3:19: {key}: ");
            assert_told(&mistakes(text), &[(&start, &[value, why])]);
        }
    }
}

#[test]
fn a_file_that_is_none_is_refused() {
    let directory = TempDir::new();
    let good = "[[listener]]\nname = \"a\"\n";
    let path = |name| directory.path(name).to_str().expect("UTF-8").to_owned();
    for (file, why) in [
        (path("missing"), "No such file"),
        (path(""), "Is a directory"),
    ] {
        assert_told(&mistakes_of(&file), &[("1:1: cannot read", &[why])]);
    }
    let told = mistakes([good.as_bytes(), b"# \xff"].concat());
    assert_told(&told, &[("3:3: ", &["0xff", "UTF-8"])]);

    let file = directory.file("open", good);
    fs::set_permissions(&file, Permissions::from_mode(0o646)).expect("chmod");
    assert_told(
        &mistakes_of(&file),
        &[("1:1: everybody may write", &["chmod o-w"])],
    );
    fs::set_permissions(&file, Permissions::from_mode(0o664)).expect("chmod");
    let ended = Program::Realpeer.run(&Host::new("server"), &["config", "check", &file]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[track_caller]
fn assert_good(text: &str) {
    let directory = TempDir::new();
    let file = directory.file("realpeer.toml", text);
    let ended = Program::Realpeer.run(&Host::new("server"), &["config", "check", &file]);
    assert_eq!(ended.code, 0, "{}\n{text}", ended.stderr);
}
