//! Signals that end a chat, and leaving the terminal as it was found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Kind, Result};

/// Signals that end the program: SIGTERM, and SIGHUP, which comes when the terminal is closed. A program that was started to outlive its
/// terminal (`nohup`) ignores SIGHUP.
#[cfg(unix)]
pub fn ending_signals() -> &'static [i32] {
    use signal_hook::consts::{SIGHUP, SIGTERM};
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigIgn:")?.trim(), 16).ok());
    match ignored.unwrap_or(0) >> (SIGHUP - 1) & 1 {
        0 => &[SIGTERM, SIGHUP],
        _ => &[SIGTERM],
    }
}

/// Signals that end the program.
#[cfg(not(unix))]
pub fn ending_signals() -> &'static [i32] {
    &[signal_hook::consts::SIGTERM]
}

/// What a thread is told that ends the chat at a signal and puts the terminal right first. A flag would not do: the line editor waits in a
/// system call that no flag ends, and the terminal's settings are changed meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// A line is being read, so there is no answer whose end is waited for.
    pub reading: Arc<AtomicBool>,
    /// Another program has the terminal, and Ctrl-C is meant for that.
    pub away: Arc<AtomicBool>,
}

/// How long an answer may take to end after SIGTERM.
#[cfg(unix)]
const GRACE: Duration = Duration::from_secs(3);

impl Watch {
    /// Starts the thread. It ends the process at [`ending_signals`], and at a Ctrl-C if nothing has reacted to an earlier one (`interrupt` is
    /// set); who reacts to a Ctrl-C clears `impatient`. The process ends with the `exit_code` of the kind. Only a terminal with a `screen` gets
    /// control sequences.
    #[cfg(unix)]
    pub fn start(
        interrupt: Arc<AtomicBool>,
        impatient: Arc<AtomicBool>,
        screen: bool,
        exit_code: fn(Kind) -> u8,
    ) -> Result<Watch> {
        use signal_hook::consts::SIGINT;
        let failed = |e: std::io::Error| Error::failed(format!("signals cannot be handled: {e}"));
        let saved = rustix::termios::tcgetattr(std::io::stdin()).ok();
        let mut signals = signal_hook::iterator::Signals::new(ending_signals()).map_err(failed)?;
        signals.add_signal(SIGINT).map_err(failed)?;
        let watch = Watch::default();
        let Watch { reading, away } = watch.clone();
        std::thread::spawn(move || {
            for signal in signals.forever() {
                let kind = match signal {
                    SIGINT if away.load(Ordering::Relaxed) => continue,
                    SIGINT if impatient.swap(true, Ordering::Relaxed) && interrupt.load(Ordering::Relaxed) => {
                        Kind::Interrupted
                    }
                    SIGINT => continue,
                    _ => {
                        // The answer ends first, so that what came of it is kept.
                        if !reading.load(Ordering::Relaxed) {
                            std::thread::sleep(GRACE);
                        }
                        Kind::Terminated
                    }
                };
                if let Some(saved) = &saved {
                    let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, saved);
                }
                if screen {
                    let _ = crossterm::execute!(std::io::stderr(), crossterm::event::DisableBracketedPaste);
                }
                // Handlers that run at exit are left out, as other threads may be computing.
                signal_hook::low_level::exit(i32::from(exit_code(kind)));
            }
        });
        Ok(watch)
    }

    /// On other systems the console has no settings to put right.
    #[cfg(not(unix))]
    pub fn start(_: Arc<AtomicBool>, _: Arc<AtomicBool>, _: bool, _: fn(Kind) -> u8) -> Result<Watch> {
        Ok(Watch::default())
    }
}
