//! The program `realpeer`.

use std::process::ExitCode;

use realpeer::cli::{self, Command};
use realpeer::config::Settings;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    match cli::parse(&words) {
        Ok(Command::Print(t)) => print!("{t}"),
        Ok(Command::Proxy(f)) => println!("{:?}", Settings::resolve(f)),
        Ok(c) => println!("{c:?}"),
        Err(e) => {
            eprintln!("realpeer: {e}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
