//! Texts about the command line: completions and the manual.

use clap::CommandFactory;

use super::args::Cli;
use crate::error::{Error, Result};
use crate::weights::device_lines;

/// The completion script of a shell.
pub fn completions(shell: clap_complete::Shell) -> Result<String> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pp-run", &mut out);
    text(out)
}

/// The manual page.
pub fn manual() -> Result<String> {
    let mut out = Vec::new();
    let page = clap_mangen::Man::new(Cli::command());
    page.render(&mut out).map_err(|e| Error::failed(format!("the manual page cannot be made: {e}")))?;
    text(out)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::internal(format!("the help is no text: {e}")))
}

/// What `--list-devices` prints, as llama.cpp does.
pub fn devices() -> String {
    let lines: Vec<String> = device_lines().into_iter().map(|line| format!("  {line}\n")).collect();
    let lines = if lines.is_empty() { "  (none)\n".to_owned() } else { lines.concat() };
    format!("Available devices:\n{lines}")
}
