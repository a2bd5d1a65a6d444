//! `pp-run cache`: the long prompts that are kept, so that none is processed twice.

use super::output::print;
use crate::engine::prompt_cache::n_tokens;
use crate::engine::prompt_store::list;
use crate::error::{Error, Result, escape};
use crate::system::{memory, places};

#[derive(Debug, Clone, Copy)]
pub enum Options {
    /// List them
    List,
    /// Delete all
    Clear,
}

/// Lists the prompts, or deletes them.
pub fn run(options: Options) -> Result<()> {
    let dir = places::prompts(&places::env)
        .ok_or_else(|| Error::input("prompts have no place: neither HOME nor XDG_CACHE_HOME is set"))?;
    let all = list(&dir);
    let n_bytes = memory::human(all.iter().map(|s| s.n_bytes).sum());
    let prompts = if all.len() == 1 { "prompt" } else { "prompts" };
    let mut out = String::new();
    match options {
        Options::List => {
            out.push_str(&format!("{}: {} {prompts}, {n_bytes}\n", escape(&dir.display().to_string()), all.len()));
            for stored in &all {
                let when =
                    jiff::Timestamp::try_from(stored.used).unwrap_or_default().to_zoned(jiff::tz::TimeZone::system());
                let (n, size) = (n_tokens(&stored.path), memory::human(stored.n_bytes));
                out.push_str(&format!("{}  {n:>8} tokens  {size:>10}\n", when.strftime("%Y-%m-%d %H:%M")));
            }
        }
        Options::Clear => {
            for stored in &all {
                match std::fs::remove_file(&stored.path) {
                    // Another process may have been faster.
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io(format!("cannot be deleted: {e}")).in_file(&stored.path));
                    }
                    _ => {}
                }
            }
            out.push_str(&format!("{} {prompts} deleted, {n_bytes}\n", all.len()));
        }
    }
    print(&out)
}
