//! The program `realpeer`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use realpeer::cli::{self, Command};
use realpeer::config::Settings;
use realpeer::{ban_relay, control, daemon, demo, doctor, routing};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    let words = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned());
    let command = match cli::parse(&words.collect::<Vec<_>>()) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("realpeer: {error:#}");
            let code = error.downcast_ref().map(control::Failure::exit_code);
            ExitCode::from(code.unwrap_or(1))
        }
    }
}

/// Whether all is well: the doctor may say no without an error.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Proxy(flags) => wait(daemon::run(Settings::resolve(flags)?))?,
        Command::Routing(action, form, flags) => {
            routing::command(action, form, &Settings::resolve(flags)?)?;
        }
        Command::Doctor(options, flags) => {
            return doctor::command(&Settings::resolve(flags)?, &options);
        }
        Command::BanRelay(flags) => wait(ban_relay::run(flags))?,
        Command::Ctl(flags) => control::run(&flags)?,
        Command::Demo => demo::run()?,
        Command::Print(text) => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(true)
}

/// Runs a task to its end on the main thread.
fn wait(task: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(task)
}
