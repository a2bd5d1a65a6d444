//! What commands share about pruning: from options and files to a session that prunes, and the dumps.

use std::path::Path;

use super::input::read_text;
use super::output::write_file;
use crate::engine::{Loaded, Session, Timeline};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::model::Model;
use crate::prune::{self, Calibration, Costs, HistoryKind, Sources, Spread};

/// Lets the session prune as the options say; not at all for `None`, or if the ratio is to be found by the model's curve and there is none.
pub fn apply(
    session: &mut Session,
    model: &Model,
    options: Option<&prune::Options>,
    n_threads: usize,
    log: &Log,
) -> Result<()> {
    let Some(options) = options else { return session.set_pruning(None) };
    let (dims, fingerprint) = (model.dims(), model.gguf().fingerprint());
    let path = options.calibration_of(model.gguf().path());
    // A calibration that someone names must be there.
    if options.target.is_some() && options.calibration.is_none() && !path.exists() {
        log.note(&format!("reading is dense: {}", no_costs(&path, model)));
        return session.set_pruning(None);
    }
    let calibration = match options.needs_calibration() {
        true => Some(Calibration::read(&path, &dims, fingerprint)?),
        false => None,
    };
    if let (Some((c, _)), HistoryKind::Position) = (&calibration, options.history) {
        c.require_positions(session.n_ctx()).map_err(|e| e.in_file(&path))?;
    }
    let costs = calibration.as_ref().and_then(|c| c.0.costs.as_ref());
    let mut options = options.clone();
    if let Some(target) = options.target {
        options.ratio = costs.map_or(0.0, |c| prune::largest(&c.curve, target)).min(prune::MAX_RATIO);
        if options.ratio <= 0.0 {
            let why = match costs {
                None => no_costs(&path, model),
                Some(_) => format!("no share of the weights costs so little on this model: KL {target}"),
            };
            log.note(&format!("reading is dense: {why}"));
            return session.set_pruning(None);
        }
    }
    let shares = match &options.spread {
        Spread::File(file) => {
            let curve = prune::parse_plan(&read_text(file)?, &dims).map_err(|e| e.in_file(file))?;
            Some(prune::between(&curve, options.ratio, &dims)?)
        }
        Spread::Calibrated => {
            let Costs { layers, .. } = costs.ok_or_else(|| Error::input(no_costs(&path, model)))?;
            Some(prune::cheapest(layers, options.ratio, &dims))
        }
        _ => None,
    };
    let replay = match &options.replay {
        None => None,
        Some(path) => {
            let records = prune::parse_dump(&read_text(path)?, &dims, fingerprint);
            Some(records.map_err(|e| e.in_file(path))?)
        }
    };
    let sources = Sources { calibration: calibration.as_ref().map(|(c, sum)| (c, *sum)), shares, replay };
    session.set_pruning(Some(prune::prepare(&options, dims, model.layers(), sources, n_threads)?))
}

/// [`apply`] to a text on any engine. [`crate::error::Kind::Unsupported`] if it is not ours and something is to be pruned.
pub fn apply_to(
    timeline: &mut dyn Timeline,
    model: &Loaded,
    options: Option<&prune::Options>,
    n_threads: usize,
    log: &Log,
) -> Result<()> {
    match (timeline.own_mut(), model.own()) {
        (Some(session), Some(model)) => apply(session, model, options, n_threads, log),
        _ if options.is_none() => Ok(()),
        _ => model.require_own("--prune").map(|_| ()),
    }
}

/// [`write_dump`] of a text on any engine.
pub fn write_dump_of(timeline: &dyn Timeline, model: &Loaded) -> Result<()> {
    match (timeline.own(), model.own()) {
        (Some(session), Some(model)) => write_dump(session, model),
        _ => Ok(()),
    }
}

fn no_costs(path: &Path, model: &Model) -> String {
    format!(
        "{} has no measured costs of this model (pp-run calibrate -m {} measures them)",
        path.display(),
        model.gguf().path().display()
    )
}

/// Writes what was kept, if a dump is wanted.
pub fn write_dump(session: &Session, model: &Model) -> Result<()> {
    let Some((options, path)) = session.prune_options().and_then(|o| Some((o, o.dump.as_deref()?))) else {
        return Ok(());
    };
    let records = session.records().unwrap_or_default();
    let text = prune::dump_text(records, model.gguf().fingerprint(), options.method.name(), options.ratio);
    write_file(path, text.as_bytes())
}
