//! Pages in Markdown: what is in them is tried.

use std::path::Path;
use std::process::{Command, Stdio};

use realpeer::program::internals::{self, Command as Asked};

/// The blocks of a page, each with the language that it says it is in.
pub fn all_blocks(page: &str) -> Vec<(String, String)> {
    let mut lines = page.lines();
    let mut blocks = vec![];
    while let Some(start) = lines.find(|line| line.starts_with("```")) {
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((start[3..].to_owned(), block.join("\n")));
    }
    blocks
}

/// The blocks of a page in this language.
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let blocks = all_blocks(page).into_iter();
    blocks
        .filter(|(is, _)| is == language)
        .map(|(_, block)| block)
        .collect()
}

/// Bash takes this for a script.
#[track_caller]
pub fn is_shell(name: &str, text: &str) {
    let mut bash = Command::new("bash");
    bash.args(["-n", "-c", text]).stderr(Stdio::piped());
    let output = bash.output().expect("bash is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{name}: {said}");
}

/// These words after `realpeer`, as bash splits them, ask for something, not only for help.
#[track_caller]
pub fn is_command_line(page: &str, line: &str) {
    let line = line.split(['|', '#', '>']).next().expect("split gives one");
    let split = format!("printf '%s\\n' {line}");
    let output = Command::new("bash").args(["-fc", &split]).output();
    let words = String::from_utf8(output.expect("bash is there").stdout).expect("UTF-8");
    let words: Vec<String> = words.lines().map(str::to_owned).collect();
    let asked = internals::parse(&words).unwrap_or_else(|e| panic!("{page}: {line}: {e}"));
    assert!(!matches!(asked, Asked::Print(_)), "{page}: {line}");
}

/// Links and pictures of a page lead to files, from its folder.
#[track_caller]
pub fn links_lead_somewhere(page: &str, text: &str, folder: &Path) {
    let links = text.split("](").skip(1);
    for link in links.filter_map(|rest| rest.split(')').next()) {
        let link = link.split('#').next().expect("split gives one");
        if !link.contains("://") {
            assert!(folder.join(link).exists(), "{page}: {link} leads nowhere");
        }
    }
}
