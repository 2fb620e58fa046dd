//! What the README and the other pages at the top say is true: each link and each path leads to a file,
//! each block is read by what it is for, and each row of the ways is asked of the program.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::pages::{all_blocks, blocks, is_command_line, is_shell, links_lead_somewhere};
use support::stage::wire;
use support::{Host, Program, TempDir, repository};

const PAGES: [&str; 4] = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benches/README.md",
];
const FOLDERS: [&str; 7] = [
    "src/",
    "tests/",
    "benches/",
    "examples/",
    "packaging/",
    ".ci/",
    ".github/",
];
/// Programs of the system that the pages use; what they are given is looked at where it is ours.
const KNOWN: [&str; 6] = ["mkdir", "echo", "systemctl", "apt", "install", "sudoedit"];

fn read(page: &str) -> String {
    fs::read_to_string(repository(page)).unwrap_or_else(|e| panic!("{page}: {e}"))
}

#[test]
fn every_link_and_every_path_leads_to_a_file() {
    for page in PAGES {
        let text = read(page);
        let file = repository(page);
        links_lead_somewhere(page, &text, file.parent().expect("a folder"));
        // `code` that begins with one of our folders; a word with a wildcard or a name in capitals is none.
        let spans = text.split('`').skip(1).step_by(2);
        let paths = spans
            .flat_map(str::split_whitespace)
            .filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)));
        for path in paths {
            assert!(repository(path).exists(), "{page}: {path} is not there");
        }
    }
}

#[test]
fn every_block_is_read_by_what_it_is_for() {
    let host = Host::new("server");
    let directory = TempDir::new();
    let balancers = directory.file("balancers", "192.0.2.5\n");
    let mut commands = 0;
    for page in PAGES {
        for (language, block) in all_blocks(&read(page)) {
            match language.as_str() {
                "sh" => {
                    is_shell(page, &block);
                    for line in block.lines().filter(|line| !line.is_empty()) {
                        is_command(page, line);
                        commands += 1;
                    }
                }
                "toml" => {
                    let block = block.replace("/etc/realpeer/balancers", &balancers);
                    let file = directory.file("block.toml", &block);
                    let check = Program::Realpeer.run(&host, &["config", "check", &file]);
                    assert_eq!(check.code, 0, "{page}: {}", check.stderr);
                }
                "ini" => {
                    let line = block.strip_prefix("ExecStart=/usr/bin/realpeer ");
                    is_command_line(page, line.expect("one line of a unit"));
                }
                "text" => {
                    // tests/doctor.rs compares it with what the doctor prints.
                    assert!(block.starts_with("failed "), "{page}: {block}");
                }
                _ => panic!("{page}: nothing reads blocks in {language:?}"),
            }
        }
    }
    assert!(commands > 20, "{commands}");
}

/// A line of shell is a command line of realpeer's, or a program or a file that is there.
#[track_caller]
fn is_command(page: &str, line: &str) {
    let line = line.strip_prefix("sudo ").unwrap_or(line);
    let code = line.split(" #").next().expect("split gives one");
    let words: Vec<&str> = code.split_whitespace().collect();
    let ours = |word: &&&str| FOLDERS.iter().any(|folder| word.starts_with(folder));
    for path in words.iter().filter(ours) {
        assert!(repository(path).exists(), "{page}: {path} is not there");
    }
    match words[0] {
        "realpeer" => is_command_line(page, code.strip_prefix("realpeer").expect("it is")),
        "cargo" => {
            for pair in words.windows(2) {
                let name = pair[1];
                let files = match pair[0] {
                    "--bench" => [
                        format!("benches/{name}.rs"),
                        format!("benches/{name}/main.rs"),
                    ],
                    "--test" => [format!("tests/{name}.rs"), format!("tests/{name}/main.rs")],
                    _ => continue,
                };
                let there = files.iter().any(|file| repository(file).exists());
                assert!(there, "{page}: {line}");
            }
        }
        path if ours(&&path) => {
            let mode = fs::metadata(repository(path)).expect(path).permissions();
            assert!(mode.mode() & 0o100 != 0, "{page}: {path} cannot be run");
        }
        program => assert!(KNOWN.contains(&program), "{page}: nothing tries {line}"),
    }
}

/// "Which way for my backend": on a host with the addresses of the examples, each row's flags give the
/// way that the row names.
#[test]
fn the_ways_are_those_of_the_program() {
    let (_balancer, server) = wire();
    let text = read("README.md");
    let (_, table) = text.split_once("## Which way for").expect("the section");
    let (table, _) = table.split_once("\n## ").expect("the next one");
    let mut tried = vec![];
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let code = |cell: &str| cell.split('`').nth(1).map(str::to_owned);
        let flags = code(cells[1]).filter(|flags| flags.contains("-4 "));
        let way = cells[2]
            .split_once("(`")
            .and_then(|(_, rest)| rest.split('`').next());
        let (Some(flags), Some(way)) = (flags, way) else {
            assert!(!cells[2].contains("(`"), "{row}");
            continue;
        };
        let words: Vec<&str> = ["routing", "show"]
            .into_iter()
            .chain(flags.split(' '))
            .collect();
        let shown = Program::Realpeer.run(&server, &words);
        assert_eq!(shown.code, 0, "{row}: {}", shown.stderr);
        let first = shown.stdout.lines().next().unwrap_or_default();
        assert!(first.contains(&format!(": {way} way,")), "{row}: {first}");
        tried.push(way.to_owned());
    }
    tried.sort();
    tried.dedup();
    assert_eq!(tried, ["loopback", "mark", "socket", "udp-port"]);
}

/// 200 to 250 words a minute.
#[test]
fn the_readme_can_be_read_in_ten_minutes() {
    let text = read("README.md");
    let prose: usize = text
        .lines()
        .map(|line| line.split_whitespace().count())
        .sum();
    assert!(prose < 2500, "{prose} words");
    for heading in [
        "Install",
        "Which way for my backend",
        "When it does not work",
        "Compared with other programs",
        "How fast",
    ] {
        assert!(text.contains(&format!("\n## {heading}\n")), "no {heading}");
    }
    assert_eq!(blocks(&text, "text").len(), 3, "the doctor's samples");
}
