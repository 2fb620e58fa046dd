//! The program `realpeer`: a command line → an exit code.
//!
//! ```no_run
//! # use std::process::ExitCode;
//! fn main() -> ExitCode {
//!     realpeer::program::main()
//! }
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::runtime::Builder;

use crate::cli::{self, Command, ConfigAction};
use crate::starter::Starter;
use crate::{
    ban_relay, config, control, daemon, demo, doctor, log, output, routing, sandbox, setup, sys,
};

/// What tests and benches of this repository look at from inside. It may change at any time.
#[doc(hidden)]
pub mod internals {
    pub use crate::bans::{Ban, Bans, Cause, Decision, Decisions};
    pub use crate::cli::{Command, TOPICS, definitions, parse};
    pub use crate::config::{
        BOOLEAN, CrowdsecDraft, Kind, ListenerDraft, ProcessDraft, Protocol, fits, key, kind,
    };
    pub use crate::daemon::run;
    pub use crate::doctor::IDS;
    pub use crate::networks::Networks;
    pub use crate::sys::systemd::Environment;
}

/// Does what the arguments of this process ask for. To be called before there are other threads.
pub fn main() -> ExitCode {
    let words = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned());
    let command = match cli::parse(&words.collect::<Vec<_>>()) {
        Ok(command) => command,
        Err(error) => {
            output::complain_as_is(error);
            return ExitCode::from(2);
        }
    };
    // What a kernel does not grant is told by whoever needs it.
    let _ = sandbox::take_up();
    let result = run(command);
    log::flush();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            match error.downcast_ref::<config::BadFile>() {
                // Its lines begin with FILE:LINE:COLUMN, as editors expect it.
                Some(bad) => output::complain_as_is(bad),
                None => log::last_words(&format!("{error:#}")),
            }
            let code = error.downcast_ref().map(control::Failure::exit_code);
            ExitCode::from(code.unwrap_or(1))
        }
    }
}

/// Whether all is well: the doctor may say no without an error.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Proxy(source) => {
            // First: it keeps what this process gives up.
            let starter = Starter::fork().context("cannot fork")?;
            let mut environment =
                sys::systemd::take_environment().context("what systemd passed on")?;
            environment.starter = Some(starter);
            daemon::hold_hangups()?;
            wait(daemon::run(source, environment))?;
        }
        Command::Config(action) => config_command(action)?,
        Command::Routing(action, form, source) => routing::command(action, form, &source.read()?)?,
        Command::Doctor(options, source) => return doctor::command(&source.read()?, &options),
        Command::BanRelay(flags) => wait(ban_relay::run(flags))?,
        Command::Ctl(flags) => control::run(&flags)?,
        Command::Demo => demo::run()?,
        Command::Setup(flags) => return setup::command(flags),
        Command::Print(text) => output::print(text).context("cannot print")?,
    }
    Ok(true)
}

fn config_command(action: ConfigAction) -> Result<()> {
    let text = match action {
        ConfigAction::Check(path) => config::good(&path, &config::load(&path, &[])?),
        ConfigAction::Show(path) => config::in_force(&config::load(&path, &[])?),
        ConfigAction::ShowRunning { control, name } => {
            control::config(control.as_deref(), name.as_deref())?
        }
        ConfigAction::FromFlags(given, source) => {
            // What the proxy would refuse, no file makes good.
            let loops = config::loops(&source.read()?);
            if !loops.is_empty() {
                return Err(config::told(&loops));
            }
            config::from_flags(&given)
        }
    };
    output::print(text).context("cannot print")
}

/// Runs a task to its end on the main thread.
fn wait(task: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(task);
    // A look-up of a name may go on that nobody waits for any more.
    runtime.shutdown_background();
    result
}
