//! `pp-run completions SHELL` and `pp-run man`.

use super::print_bytes;
use crate::cli;
use crate::error::{Error, Result};

/// A completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "pp-run", &mut out);
    print_bytes(&out)
}

/// The manual page.
pub fn man() -> Result<()> {
    let mut out = Vec::new();
    let page = clap_mangen::Man::new(cli::command());
    page.render(&mut out).map_err(|e| Error::failed(format!("the manual page cannot be made: {e}")))?;
    print_bytes(&out)
}
