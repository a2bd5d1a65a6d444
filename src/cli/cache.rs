//! Flags of `pp-run cache`, and the options that they become.

use clap::Args;

use crate::commands::cache::Options;

#[derive(Debug, Args)]
pub struct CacheArgs {
    /// Delete all of them
    #[arg(long)]
    pub clear: bool,
}

pub fn options(a: &CacheArgs) -> Options {
    if a.clear { Options::Clear } else { Options::List }
}
