//! What commands share about pruning: from options and files to a session that prunes, and the dumps.

use super::input::read_text;
use super::output::write_file;
use crate::engine::Session;
use crate::error::Result;
use crate::model::Model;
use crate::prune::{self, Spread};

/// Lets the session prune as the options say; not at all for `None`.
pub fn apply(session: &mut Session, model: &Model, options: Option<&prune::Options>, n_threads: usize) -> Result<()> {
    let Some(options) = options else { return session.set_pruning(None) };
    let facts = model.facts();
    let curve = match &options.spread {
        Spread::File(path) => Some(prune::parse_plan(&read_text(path)?, &facts.dims).map_err(|e| e.in_file(path))?),
        _ => None,
    };
    let replay = match &options.replay {
        None => None,
        Some(path) => {
            let records = prune::parse_dump(&read_text(path)?, &facts.dims, facts.fingerprint);
            Some(records.map_err(|e| e.in_file(path))?)
        }
    };
    session.set_pruning(Some(prune::prepare(options, facts, curve, replay, session.n_ctx(), n_threads)?))
}

/// Writes what was kept, if a dump is wanted.
pub fn write_dump(session: &Session, model: &Model, options: Option<&prune::Options>) -> Result<()> {
    let Some((options, path)) = options.and_then(|o| Some((o, o.dump.as_deref()?))) else { return Ok(()) };
    let records = session.records().unwrap_or_default();
    let text = prune::dump_text(records, model.gguf().fingerprint(), options.method.name(), options.ratio);
    write_file(path, text.as_bytes())
}
