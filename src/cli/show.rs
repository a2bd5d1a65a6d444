//! Flags of `pp-run show`, and the options that they become.

use std::path::PathBuf;

use clap::Args;

use crate::commands::show::Options;
use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The model
    #[arg(value_name = "MODEL", required_unless_present = "model")]
    pub path: Option<PathBuf>,
    #[arg(long, short = 'm', value_name = "FILE", hide = true)]
    pub model: Option<PathBuf>,
    /// List the tensors too
    #[arg(long)]
    pub tensors: bool,
    /// List what --prune can leave out
    #[arg(long, conflicts_with_all = ["tensors", "json"])]
    pub prunable: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn options(a: ShowArgs) -> Result<Options> {
    Ok(Options {
        path: a.path.or(a.model).ok_or_else(|| Error::usage("which model? pp-run show MODEL"))?,
        tensors: a.tensors,
        prunable: a.prunable,
        json: a.json,
    })
}
