//! Signals: Ctrl-C stops what runs, SIGTERM and SIGHUP end the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::chat::{Watch, ending_signals};
use crate::error::{Error, Kind, Result};

/// Flags that signals set.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Ctrl-C or SIGTERM: stop what runs.
    pub interrupt: Arc<AtomicBool>,
    /// SIGTERM, or SIGHUP
    pub terminate: Arc<AtomicBool>,
    /// In a chat: a Ctrl-C came that nothing has reacted to yet. Another one ends the chat.
    pub impatient: Arc<AtomicBool>,
    /// Ctrl-\: what the model thinks is to end.
    pub answer_now: Arc<AtomicBool>,
    /// The handler that ends the process at a second Ctrl-C
    second: signal_hook::SigId,
    exit_code: fn(Kind) -> u8,
}

impl Signals {
    /// Catches Ctrl-C and SIGTERM. A second Ctrl-C ends the process if nothing has reacted to the first.
    pub fn catch(exit_code: fn(Kind) -> u8) -> Result<Signals> {
        use signal_hook::consts::SIGINT;
        use signal_hook::flag;
        let register = || -> std::io::Result<Signals> {
            let (interrupt, terminate, impatient): (Arc<AtomicBool>, Arc<AtomicBool>, _) = Default::default();
            let second = flag::register_conditional_shutdown(
                SIGINT,
                i32::from(exit_code(Kind::Interrupted)),
                interrupt.clone(),
            )?;
            flag::register(SIGINT, interrupt.clone())?;
            for &signal in ending_signals() {
                flag::register(signal, terminate.clone())?;
                flag::register(signal, interrupt.clone())?;
            }
            Ok(Signals { interrupt, terminate, impatient, answer_now: Arc::default(), second, exit_code })
        };
        register().map_err(|e| Error::failed(format!("signals cannot be handled: {e}")))
    }

    /// From now on Ctrl-\ ends what the model thinks, and not the process.
    pub fn catch_answer_now(&self) -> Result<()> {
        #[cfg(unix)]
        signal_hook::flag::register(signal_hook::consts::SIGQUIT, self.answer_now.clone())
            .map_err(|e| Error::failed(format!("signals cannot be handled: {e}")))?;
        Ok(())
    }

    /// The same for a chat, whose terminal must be put right before the process ends; it may have a `screen`. The terminal is to be as it was
    /// found.
    pub fn watch(&self, screen: bool) -> Result<Watch> {
        let watch = Watch::start(self.interrupt.clone(), self.impatient.clone(), screen, self.exit_code)?;
        if cfg!(unix) {
            signal_hook::low_level::unregister(self.second);
        }
        Ok(watch)
    }

    /// Whether Ctrl-C or SIGTERM came.
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }

    /// The error that ends an interrupted run.
    pub fn error(&self) -> Error {
        match self.terminate.load(Ordering::Relaxed) {
            true => Error::new(Kind::Terminated, "terminated"),
            false => Error::new(Kind::Interrupted, "interrupted"),
        }
    }

    /// An error, or if it is an interruption [`Signals::error`], which knows what interrupted.
    pub fn named(&self, e: Error) -> Error {
        if e.kind() == Kind::Interrupted { self.error() } else { e }
    }

    /// Whether Ctrl-C or SIGTERM came. The flag is taken back, so that the next signal is seen.
    pub fn take_interrupt(&self) -> bool {
        self.impatient.store(false, Ordering::Relaxed);
        self.interrupt.swap(false, Ordering::Relaxed)
    }
}
