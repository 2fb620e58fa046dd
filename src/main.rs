//! The program `realpeer`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use realpeer::cli::{self, Command};
use realpeer::config::Settings;
use realpeer::{daemon, routing};

fn main() -> ExitCode {
    let words = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned());
    let command = match cli::parse(&words.collect::<Vec<_>>()) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("realpeer: {error}");
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("realpeer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Proxy(flags) => daemon::run(Settings::resolve(flags)?),
        Command::Routing(action, form, flags) => {
            routing::command(action, form, &Settings::resolve(flags)?)
        }
        Command::Demo => bail!("not there yet"),
        Command::Print(text) => Ok(std::io::stdout().write_all(text.as_bytes())?),
    }
}
