//! Text of unknown origin: names that other programs gave to processes, interfaces and chains.

/// The text with control characters, and those that reorder or hide text, written as escapes.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| match is_hidden(c) {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

/// One word of bash that means exactly `text`, and prints as it is read.
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    if !text.contains(is_hidden) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut quoted = String::from("$'");
    for c in text.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if is_hidden(c) => {
                let bytes = c.to_string().into_bytes();
                quoted.extend(bytes.iter().map(|byte| format!("\\x{byte:02x}")));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// Control characters (Cc), line separators, and the format characters that terminals obey:
/// zero-width and bidirectional ones.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const NASTY: [&str; 8] = [
        "",
        "plain-word",
        "two words",
        "it's $(reboot) `x` \"y\" \\ ! ; & | > * ~ #",
        "\x1b]0;owned\x07\x1b[2J",
        "a\nb'\\\r\t\x7f",
        "\u{9b}2J\u{202e}gnp.exe",
        "-rf",
    ];

    #[test]
    fn bash_reads_what_was_quoted_as_it_was() {
        for text in NASTY {
            let script = format!("printf %s {}", quote(text));
            let output = Command::new("bash").args(["-c", &script]).output();
            let output = output.expect("bash").stdout;
            // A word that begins with a dash is printf's format only if it comes first.
            assert_eq!(String::from_utf8_lossy(&output), text, "{script}");
        }
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for text in NASTY {
            assert!(!printable(text).contains(is_hidden), "{text:?}");
            assert!(!quote(text).contains(is_hidden), "{text:?}");
        }
        assert_eq!(printable("\x1b[2J\r"), "\\u{1b}[2J\\r");
        assert_eq!(printable("ä \"quoted\" \\"), "ä \"quoted\" \\");
    }
}
