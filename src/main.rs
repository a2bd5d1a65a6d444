//! pp-run: parse, run, print the error, exit code.

use std::io::Write;
use std::panic;
use std::process::ExitCode;

use pp_run::cli::{self, Parsed};
use pp_run::commands;
use pp_run::error::{Error, Kind, Result};

#[global_allocator]
static ALLOCATOR: limit::Limited = limit::Limited;

fn main() -> ExitCode {
    // A panic prints nothing itself: its message becomes part of the one error line below.
    panic::set_hook(Box::new(|_| {}));
    let result = panic::catch_unwind(start).unwrap_or_else(|cause| {
        let message = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
        Err(match message {
            // std::thread::spawn panics where the system allows no more threads.
            Some(m) if m.contains("failed to spawn thread") => Error::memory(format!("{m}: use fewer threads (-t)")),
            _ => Error::internal(format!("internal error, please report it: {}", message.unwrap_or("no message"))),
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let message = e.to_string();
            if !message.is_empty() {
                say(&format!("error: {message}"));
            }
            ExitCode::from(exit_code(e.kind()))
        }
    }
}

const fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => 1,
        Kind::Usage => 2,
        Kind::Malformed => 65,
        Kind::Input => 66,
        Kind::Unsupported => 69,
        Kind::Internal => 70,
        Kind::Memory => 71,
        Kind::CannotCreate => 73,
        Kind::Io => 74,
        Kind::Interrupted => 130,
        Kind::Terminated => 143,
    }
}

fn start() -> Result<()> {
    match cli::parse(std::env::args_os().collect(), &|name| std::env::var_os(name))? {
        Parsed::Text(text, warnings) => {
            warn(&warnings);
            commands::print(&text)
        }
        Parsed::Command(command, warnings) => {
            warn(&warnings);
            commands::run(&command, exit_code)
        }
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        say(&format!("warning: {warning}"));
    }
}

/// Writes one line to stderr. If that fails there is nobody to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "pp-run: {line}");
}
