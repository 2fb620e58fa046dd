//! go-mmproxy's own flags: the same tests for realpeer, for realpeer with the file that `config
//! from-flags` makes of them, and for Debian's go-mmproxy 2.1. Below them
//! stands where the two differ; there go-mmproxy's behaviour is asserted as well, so that a
//! difference that has gone shows.

mod support;

use nix::sys::signal::Signal;
use support::header::{self, v1, v2};
use support::stage::{CLIENT, CLIENT6, OTHER_BALANCER, PROXY, VISITED, VISITED6};
use support::streams::{
    assert_carries, assert_closed, assert_turned_away, finish_sending, receive, receive_all, send,
};
use support::{Backend, Host, Program, Stage, TempDir, addr, wait_until};

macro_rules! all_pass {
    ($($story:ident)*) => {
        mod realpeer {
            $(#[test] fn $story() { super::$story(super::Program::Realpeer) })*
        }
        mod realpeer_by_file {
            $(#[test] fn $story() { super::$story(super::Program::RealpeerByFile) })*
        }
        mod go_mmproxy {
            $(#[test] fn $story() { super::$story(super::Program::GoMmproxy) })*
        }
    };
}

all_pass! {
    v1_carries_an_ipv4_client
    v1_carries_an_ipv6_client
    v2_carries_an_ipv4_client
    v2_carries_an_ipv6_client
    the_clients_family_chooses_the_target
    bytes_behind_the_header_arrive
    a_listener_on_both_families
    mark_stands_on_every_packet_to_the_backend
    allowed_subnets_refuses_the_others
    allowed_subnets_knows_ipv6
    listeners_opens_so_many_sockets
    a_connection_without_a_header_is_closed
    flags_may_be_spelt_four_ways
    the_last_of_a_repeated_flag_counts
    two_dashes_end_the_flags
    flags_without_effect_here_are_accepted
    help_lists_the_flags
    an_unknown_flag_exits_2
    a_bad_number_exits_2
    a_missing_value_exits_2
    a_missing_subnets_file_exits_1
    a_malformed_subnets_file_exits_1
}

fn v1_carries_an_ipv4_client(program: Program) {
    let stage = Stage::of(program, &[]);
    let near = stage.dial_and_send(v1(CLIENT, VISITED));
    let (far, from) = stage.backend.accept();
    assert_eq!(from, addr(CLIENT));
    assert_carries(&near, &far);
}

fn v1_carries_an_ipv6_client(program: Program) {
    let stage = Stage::of(program, &[]);
    let near = stage.dial_and_send(v1(CLIENT6, VISITED6));
    let (far, from) = stage.backend6.accept();
    assert_eq!(from, addr(CLIENT6));
    assert_carries(&near, &far);
}

fn v2_carries_an_ipv4_client(program: Program) {
    let stage = Stage::of(program, &[]);
    let near = stage.dial_and_send(v2(CLIENT, VISITED).bytes());
    let (far, from) = stage.backend.accept();
    assert_eq!(from, addr(CLIENT));
    assert_carries(&near, &far);
}

fn v2_carries_an_ipv6_client(program: Program) {
    let stage = Stage::of(program, &[]);
    let near = stage.dial_and_send(v2(CLIENT6, VISITED6).bytes());
    let (far, from) = stage.backend6.accept();
    assert_eq!(from, addr(CLIENT6));
    assert_carries(&near, &far);
}

fn the_clients_family_chooses_the_target(program: Program) {
    // An IPv4 client behind a load balancer that reaches us over IPv6; the other way round is
    // v1_carries_an_ipv6_client.
    let stage = Stage::of(program, &["-l", "[::]:2222"]);
    let near = stage.balancer.dial("[2001:db8::10]:2222");
    send(&near, v1(CLIENT, VISITED));
    assert_eq!(stage.backend.accept().1, addr(CLIENT));
}

fn bytes_behind_the_header_arrive(program: Program) {
    let stage = Stage::of(program, &[]);
    for header in [
        v1(CLIENT, VISITED),
        v2("203.0.113.8:40000", VISITED).bytes(),
    ] {
        let _near = stage.dial_and_send([&header, b"hello".as_slice()].concat());
        assert_eq!(receive(&stage.backend.accept().0, 5), b"hello");
    }
}

fn a_listener_on_both_families(program: Program) {
    let stage = Stage::of(program, &["-l", "[::]:2222"]);
    for (to, client) in [("[2001:db8::10]:2222", CLIENT6), (PROXY, CLIENT)] {
        let near = stage.balancer.dial(to);
        stage.introduce(&near, client);
    }
}

fn mark_stands_on_every_packet_to_the_backend(program: Program) {
    let stage = Stage::of(program, &["-mark", "0x7b"]);
    for rule in [
        "add table inet watch",
        "add chain inet watch out { type filter hook output priority 0; }",
        "add rule inet watch out tcp dport 9000 meta mark 123 counter comment marked",
        "add rule inet watch out tcp dport 9000 meta mark != 123 counter comment unmarked",
    ] {
        stage.server.run(&["nft", rule]);
    }
    let session = stage.session(CLIENT);
    assert_carries(&session.near, &session.far);
    assert!(
        counted_packets(&stage.server, "marked") >= 3,
        "SYN, ACK and data are marked"
    );
    assert_eq!(counted_packets(&stage.server, "unmarked"), 0);
}

/// How many packets met the nft rule that has this comment.
fn counted_packets(host: &Host, comment: &str) -> u32 {
    let rules = host.run(&["nft", "list", "table", "inet", "watch"]);
    let rule = rules
        .lines()
        .find(|line| line.contains(&format!("comment \"{comment}\"")));
    let mut words = rule.expect("the rule is there").split_whitespace();
    words
        .find(|word| *word == "packets")
        .expect("the rule counts");
    words
        .next()
        .and_then(|number| number.parse().ok())
        .expect("a number of packets")
}

fn allowed_subnets_refuses_the_others(program: Program) {
    let directory = TempDir::new();
    let file = directory.file("subnets", "192.0.2.6/32\n198.51.100.0/24\n");
    let stage = Stage::of(program, &["-allowed-subnets", &file]);

    assert_turned_away(stage.balancer.try_dial(None, PROXY));
    let allowed = stage.balancer.dial_from(OTHER_BALANCER, PROXY);
    stage.introduce(&allowed, CLIENT);
    stage.backend.assert_idle();
}

fn allowed_subnets_knows_ipv6(program: Program) {
    let directory = TempDir::new();
    let file = directory.file("subnets", "2001:db8::6/128\n");
    let stage = Stage::of(program, &["-l", "[::]:2222", "-allowed-subnets", &file]);

    assert_turned_away(
        stage
            .balancer
            .try_dial(Some("[2001:db8::5]:0"), "[2001:db8::10]:2222"),
    );
    assert_turned_away(stage.balancer.try_dial(None, PROXY));
    let allowed = stage
        .balancer
        .dial_from("[2001:db8::6]:0", "[2001:db8::10]:2222");
    stage.introduce(&allowed, CLIENT6);
}

fn listeners_opens_so_many_sockets(program: Program) {
    let stage = Stage::of(program, &["-listeners", "3"]);
    wait_until("three sockets listen", || stage.server.listeners(2222) == 3);
    // The kernel spreads connections over them; whichever it chooses must serve.
    for port in 40_000..40_020 {
        let session = stage.session(&format!("203.0.113.7:{port}"));
        assert_carries(&session.near, &session.far);
    }
}

fn a_connection_without_a_header_is_closed(program: Program) {
    let stage = Stage::of(program, &[]);
    for wrong in [
        "GET / HTTP/1.1\r\nHost: example\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        assert_closed(&stage.dial_and_send(wrong));
    }
    stage.backend.assert_idle();
}

fn flags_may_be_spelt_four_ways(program: Program) {
    for spelling in [
        ["-l", "0.0.0.0:2222"].as_slice(),
        &["--l", "0.0.0.0:2222"],
        &["-l=0.0.0.0:2222"],
        &["--l=0.0.0.0:2222"],
    ] {
        let server = Host::new("server");
        let backend = Backend::listen(&server, "127.0.0.1:9000");
        let rest = ["--4=127.0.0.1:9000", "-6", "[::1]:9000", "-mark=0", "--v=0"];
        let _proxy = program.start_on(2222, &server, &[spelling, &rest].concat());
        let near = server.dial("127.0.0.1:2222");
        send(&near, v1(CLIENT, VISITED));
        assert_eq!(backend.accept().1, addr(CLIENT));
    }
}

fn the_last_of_a_repeated_flag_counts(program: Program) {
    let server = Host::new("server");
    let flags = [
        "-l",
        "127.0.0.1:1111",
        "-listeners",
        "2",
        "-listeners=1",
        "-l=127.0.0.1:2222",
    ];
    let _proxy = program.start_on(2222, &server, &flags);
    assert_eq!(server.listeners(1111), 0);
    assert_eq!(server.listeners(2222), 1);
}

fn two_dashes_end_the_flags(program: Program) {
    let server = Host::new("server");
    let _proxy = program.start_on(2222, &server, &["-l", "127.0.0.1:2222", "--"]);
    assert_eq!(server.listeners(2222), 1);
}

fn flags_without_effect_here_are_accepted(program: Program) {
    let stage = Stage::of(
        program,
        &["-p", "tcp", "-close-after", "60", "-v", "1", "-mark", "0"],
    );
    stage.session(CLIENT);
}

fn help_lists_the_flags(program: Program) {
    for spelling in ["-h", "-help", "--help"] {
        let ended = program.run(&Host::new("host"), &[spelling]);
        assert_eq!(ended.code, 0);
        let help = ended.stdout + &ended.stderr;
        for flag in [
            "-4",
            "-6",
            "-allowed-subnets",
            "-close-after",
            "-l",
            "-listeners",
            "-mark",
            "-p",
            "-v",
        ] {
            let listed = help
                .lines()
                .any(|line| line.split([' ', ',']).any(|word| word == flag));
            assert!(listed, "{flag} is missing from\n{help}");
        }
    }
}

fn an_unknown_flag_exits_2(program: Program) {
    let ended = program.run(&Host::new("host"), &["-no-such-flag"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("-no-such-flag"), "{}", ended.stderr);
    assert!(
        ended.stderr.to_lowercase().contains("usage"),
        "{}",
        ended.stderr
    );
}

fn a_bad_number_exits_2(program: Program) {
    for words in [
        ["-mark=abc"].as_slice(),
        &["-listeners", "1.5"],
        &["-v", ""],
        &["-mark", "0x"],
    ] {
        let ended = program.run(&Host::new("host"), words);
        assert_eq!(ended.code, 2, "{words:?}");
        assert!(
            ended.stderr.to_lowercase().contains("usage"),
            "{}",
            ended.stderr
        );
    }
}

fn a_missing_value_exits_2(program: Program) {
    let ended = program.run(&Host::new("host"), &["-l"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("-l"), "{}", ended.stderr);
}

fn a_missing_subnets_file_exits_1(program: Program) {
    let ended = program.run(&Host::new("host"), &["-allowed-subnets", "/no/such/file"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("/no/such/file"), "{}", ended.stderr);
}

fn a_malformed_subnets_file_exits_1(program: Program) {
    let directory = TempDir::new();
    let file = directory.file("subnets", "192.0.2.0/24\n192.0.2.0/33\n");
    let ended = program.run(&Host::new("host"), &["-allowed-subnets", &file]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains(&file), "{}", ended.stderr);
}

/// Expected differences: what realpeer does otherwise than go-mmproxy 2.1, on purpose.
mod difference {
    use super::*;

    macro_rules! both_differ {
        ($($story:ident)*) => {
            mod realpeer {
                $(#[test] fn $story() { super::$story(super::Program::Realpeer) })*
            }
            mod realpeer_by_file {
                $(#[test] fn $story() { super::$story(super::Program::RealpeerByFile) })*
            }
        };
    }

    both_differ! {
        go_mmproxy_drops_a_header_that_comes_in_two_pieces
        go_mmproxy_shows_itself_where_the_header_names_no_client
        go_mmproxy_cuts_the_answer_when_the_client_has_finished_sending
        go_mmproxy_drops_a_second_connection_with_the_same_claim
        go_mmproxy_lets_anyone_pose_as_localhost
        go_mmproxy_takes_an_empty_subnets_file_for_everyone
        go_mmproxy_takes_an_unreadable_subnets_file_for_everyone
        go_mmproxy_2_1_reads_only_prefixes_in_a_subnets_file
        go_mmproxy_exits_0_when_it_cannot_listen
        go_mmproxy_overlooks_stray_words_and_what_stands_behind_them
        go_mmproxy_exits_1_where_a_value_is_out_of_range
        go_mmproxy_takes_any_verbosity_and_any_target
        go_mmproxy_2_1_lacks_the_maintained_forks_flags
        go_mmproxy_2_1_logs_to_standard_error_with_keys_of_its_own
        go_mmproxy_is_killed_by_sigterm_with_every_session
    }

    fn go_mmproxy_drops_a_header_that_comes_in_two_pieces(realpeer: Program) {
        let first_piece = |stage: &Stage| {
            let near = stage.dial_and_send("PROXY TCP4 203.0.113.7 ");
            // go-mmproxy may have closed it as soon as it is read.
            let port = near.local_addr().expect("our own address").port();
            wait_until("the first piece is read", || {
                stage
                    .server
                    .queues(2222, port)
                    .is_none_or(|(_, unread)| unread == 0)
            });
            near
        };
        let stage = Stage::of(Program::GoMmproxy, &[]);
        assert_closed(&first_piece(&stage));

        let stage = Stage::of(realpeer, &[]);
        let near = first_piece(&stage);
        send(&near, "198.51.100.1 40000 22\r\n");
        assert_eq!(stage.backend.accept().1, addr(CLIENT));
    }

    fn go_mmproxy_shows_itself_where_the_header_names_no_client(realpeer: Program) {
        let local = header::V2::new(header::LOCAL, header::UNSPEC, vec![]).bytes();
        for header in [b"PROXY UNKNOWN\r\n".to_vec(), local] {
            let stage = Stage::of(Program::GoMmproxy, &[]);
            let _near = stage.dial_and_send(&header);
            assert_eq!(stage.backend.accept().1.ip(), addr("127.0.0.1:0").ip());

            let stage = Stage::of(realpeer, &[]);
            let near = stage.dial_and_send(&header);
            assert_eq!(
                stage.backend.accept().1,
                near.local_addr().expect("our own address")
            );
        }
    }

    fn go_mmproxy_cuts_the_answer_when_the_client_has_finished_sending(realpeer: Program) {
        let finish = |program| {
            let stage = Stage::of(program, &[]);
            let session = stage.session(CLIENT);
            send(&session.near, "request");
            finish_sending(&session.near);
            assert_eq!(receive_all(&session.far), b"request");
            (stage, session)
        };
        // By the time the backend has read the end, go-mmproxy has closed both connections.
        let (_stage, session) = finish(Program::GoMmproxy);
        assert_eq!(receive_all(&session.near), b"");

        let (_stage, session) = finish(realpeer);
        send(&session.far, "answer");
        drop(session.far);
        assert_eq!(receive_all(&session.near), b"answer");
    }

    fn go_mmproxy_drops_a_second_connection_with_the_same_claim(realpeer: Program) {
        let stage = Stage::of(Program::GoMmproxy, &[]);
        let _first = stage.session(CLIENT);
        assert_closed(&stage.dial_and_send(v1(CLIENT, VISITED)));

        let stage = Stage::of(realpeer, &[]);
        let _first = stage.session(CLIENT);
        let _second = stage.dial_and_send(v1(CLIENT, VISITED));
        let seen = stage.backend.accept().1;
        assert_eq!(seen.ip(), addr(CLIENT).ip());
        assert_ne!(seen.port(), addr(CLIENT).port());
    }

    fn go_mmproxy_lets_anyone_pose_as_localhost(realpeer: Program) {
        let claim = v1("127.0.0.1:40000", VISITED);
        let stage = Stage::of(Program::GoMmproxy, &[]);
        let _near = stage.dial_and_send(&claim);
        assert_eq!(stage.backend.accept().1, addr("127.0.0.1:40000"));

        let stage = Stage::of(realpeer, &[]);
        assert_closed(&stage.dial_and_send(&claim));
        stage.backend.assert_idle();
    }

    fn go_mmproxy_takes_an_empty_subnets_file_for_everyone(realpeer: Program) {
        let directory = TempDir::new();
        let file = directory.file("subnets", "");
        Stage::of(Program::GoMmproxy, &["-allowed-subnets", &file]).session(CLIENT);

        let ended = realpeer.run(&Host::new("host"), &["-allowed-subnets", &file]);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains(&file), "{}", ended.stderr);
    }

    fn go_mmproxy_takes_an_unreadable_subnets_file_for_everyone(realpeer: Program) {
        // A directory can be opened but not read.
        Stage::of(Program::GoMmproxy, &["-allowed-subnets", "/tmp"]).session(CLIENT);

        let ended = realpeer.run(&Host::new("host"), &["-allowed-subnets", "/tmp"]);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains("/tmp"), "{}", ended.stderr);
    }

    fn go_mmproxy_2_1_reads_only_prefixes_in_a_subnets_file(realpeer: Program) {
        let directory = TempDir::new();
        for (name, lines) in [
            ("bare", "192.0.2.5\n"),
            ("blank", "192.0.2.0/24\n\n"),
            ("comment", "# the office\n192.0.2.0/24\n"),
            ("comment-behind", "192.0.2.0/24 # the office\n"),
        ] {
            let file = directory.file(name, lines);
            let ended = Program::GoMmproxy.run(&Host::new("host"), &["-allowed-subnets", &file]);
            assert_eq!(ended.code, 1);
            Stage::of(realpeer, &["-allowed-subnets", &file]).session(CLIENT);
        }
    }

    fn go_mmproxy_exits_0_when_it_cannot_listen(realpeer: Program) {
        let words = ["-l", "192.0.2.99:2222"];
        assert_eq!(Program::GoMmproxy.run(&Host::new("host"), &words).code, 0);

        let ended = realpeer.run(&Host::new("host"), &words);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains("192.0.2.99:2222"), "{}", ended.stderr);
    }

    fn go_mmproxy_overlooks_stray_words_and_what_stands_behind_them(realpeer: Program) {
        let words = ["-l", "127.0.0.1:2222", "stray", "-no-such-flag"];
        let server = Host::new("server");
        let _proxy = Program::GoMmproxy.start_on(2222, &server, &words);

        let ended = realpeer.run(&Host::new("host"), &words);
        assert_eq!(ended.code, 2);
        assert!(ended.stderr.contains("stray"), "{}", ended.stderr);
    }

    fn go_mmproxy_exits_1_where_a_value_is_out_of_range(realpeer: Program) {
        for words in [
            ["-mark", "-1"],
            ["-listeners", "0"],
            ["-p", "sctp"],
            ["-close-after", "-1"],
        ] {
            assert_eq!(
                Program::GoMmproxy.run(&Host::new("host"), &words).code,
                1,
                "{words:?}"
            );
            assert_eq!(
                realpeer.run(&Host::new("host"), &words).code,
                2,
                "{words:?}"
            );
        }
    }

    fn go_mmproxy_takes_any_verbosity_and_any_target(realpeer: Program) {
        for words in [["-v", "3"], ["-4", "127.0.0.1"], ["-4", "[::1]:22"]] {
            let server = Host::new("server");
            let with_listen = [["-l", "127.0.0.1:2222"], words].concat();
            let _proxy = Program::GoMmproxy.start_on(2222, &server, &with_listen);

            assert_eq!(
                realpeer.run(&Host::new("host"), &words).code,
                2,
                "{words:?}"
            );
        }
    }

    fn go_mmproxy_2_1_lacks_the_maintained_forks_flags(realpeer: Program) {
        for flag in ["-dynamic-destination", "-listen-transparent"] {
            assert_eq!(Program::GoMmproxy.run(&Host::new("host"), &[flag]).code, 2);
            Stage::of(realpeer, &[flag]);
        }
    }

    fn go_mmproxy_2_1_logs_to_standard_error_with_keys_of_its_own(realpeer: Program) {
        let stage = Stage::of(Program::GoMmproxy, &[]);
        let line = stage.proxy.wait_for_error("\"msg\":\"listening\"");
        assert!(
            line.contains("\"ts\":") && line.contains("\"level\":\"info\""),
            "{line}"
        );
        assert_eq!(stage.proxy.stdout(), Vec::<String>::new());

        let stage = Stage::of(realpeer, &[]);
        let line = stage.proxy.wait_for_line("\"msg\":\"listening\"");
        assert!(
            line.contains("\"time\":") && line.contains("\"level\":\"INFO\""),
            "{line}"
        );
    }

    fn go_mmproxy_is_killed_by_sigterm_with_every_session(realpeer: Program) {
        let mut stage = Stage::of(Program::GoMmproxy, &[]);
        let session = stage.session(CLIENT);
        stage.proxy.signal(Signal::SIGTERM);
        assert_eq!(stage.proxy.wait_for_exit().code(), None);
        assert_closed(&session.near);

        let mut stage = Stage::of(realpeer, &[]);
        let session = stage.session(CLIENT);
        stage.proxy.signal(Signal::SIGTERM);
        wait_until("it stops listening", || stage.server.listeners(2222) == 0);
        assert_carries(&session.near, &session.far);
        drop(session);
        assert_eq!(stage.proxy.exit_code(), 0);
    }
}
