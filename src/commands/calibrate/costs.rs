//! What leaving out parts of a model while it reads costs what follows: each block alone, then whole budgets.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

use crate::commands::kld::{mean_kl, perplexity_ratio};
use crate::commands::output::write_file;
use crate::commands::scores::{Followed, Scores};
use crate::commands::signals::Signals;
use crate::engine::{self, Session};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::model::Model;
use crate::prune::{self, Block, Calibration, Costs, LayerCosts, Measured, Shares, Sources, Spread};
use crate::tokenizer::Token;

/// Windows that each block's cost is measured on.
const OF_BLOCKS: usize = 4;
/// Windows that each point of the curve is measured on.
const OF_CURVE: usize = 16;
/// Windows of the curve that time is measured on.
const TIMED: usize = 8;
/// Windows in all.
pub const WINDOWS: usize = OF_BLOCKS + OF_CURVE;
/// Tokens of a window that are read, and that are scored after these, as far as the model's context goes.
const READ: usize = 512;
const SCORED: usize = 128;
/// How much tokens that repeat a part of what was read count in a block's cost, of 1; the rest is the text that goes on. To go on where the
/// same came before, a model must find it far back. Few blocks do that, and the text that goes on hardly shows when they are left out: then
/// details of a long prompt are lost. A tenth is enough for these blocks to be kept. With more, so much is left out elsewhere that other
/// text suffers.
const QUOTES: f64 = 0.1;
/// Most bytes of a file of measurements: some 25 for each.
const MAX_PART: u64 = 1 << 20;
/// The curve's ratios.
const RATIOS: [f64; 9] = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6];

/// Tokens of a window that are read and scored, for a model that was trained on so many at once. [`crate::error::Kind::Usage`] if its
/// context is too short for any of a prompt to be pruned.
pub fn window(n_ctx_train: usize) -> Result<(usize, usize)> {
    let n = (READ + SCORED).min(n_ctx_train);
    let scored = n * SCORED / (READ + SCORED);
    if n - scored < 2 * engine::READ_WHOLE {
        return Err(Error::usage(format!(
            "the model's context of {n_ctx_train} tokens is too short to measure what pruned reading costs: use --no-costs"
        )));
    }
    Ok((n - scored, scored))
}

/// What was measured so far, in a file that the same command goes on with.
struct Part {
    path: PathBuf,
    /// Tells the model and the windows from others
    key: String,
    /// By [`prune::measurements`]
    blocks: Vec<f64>,
    curve: Vec<Measured>,
}

impl Part {
    /// What the file at `path` has, if it is of these windows and this model; else nothing yet.
    fn new(path: PathBuf, key: String) -> Part {
        let mut part = Part { path, key, blocks: Vec::new(), curve: Vec::new() };
        // Anything may have that name: to read a FIFO would wait for a writer, and no part is large.
        let is_part = std::fs::metadata(&part.path).is_ok_and(|m| m.is_file() && m.len() <= MAX_PART);
        let read = is_part.then(|| std::fs::read(&part.path).ok()).flatten();
        let Some(value) = read.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else { return part };
        if value["pp-run calibration in parts"].as_str() != Some(&part.key) {
            return part;
        }
        let blocks = value["blocks"].as_array().and_then(|b| b.iter().map(Value::as_f64).collect());
        let curve = Costs::curve_from_json(&value["curve"]);
        if let (Some(blocks), Some(curve)) = (blocks, curve) {
            (part.blocks, part.curve) = (blocks, curve);
        }
        part
    }

    fn save(&self) -> Result<()> {
        let value = json!({
            "pp-run calibration in parts": self.key,
            "blocks": self.blocks,
            "curve": Costs::curve_to_json(&self.curve),
        });
        write_file(&self.path, value.to_string().as_bytes())
    }
}

/// What follows a window that was read: the text goes on, or it repeats a part of what was read.
struct Read {
    on: Followed,
    quote: Followed,
}

/// The part of what was read that is repeated, half as long as what follows: neither its beginning nor its end, which are read whole.
fn quote(window: &[Token], n_read: usize) -> &[Token] {
    let n = (window.len() - n_read) / 2;
    let start = (n_read - n) / 2;
    &window[start..start + n]
}

/// What measuring needs.
pub struct Measure<'m> {
    pub model: &'m Model,
    pub context: engine::Options,
    /// Statistics of the model, which second the probe
    pub calibration: &'m Calibration,
    /// [`WINDOWS`] of equal length
    pub windows: Vec<Vec<Token>>,
    /// Tokens that are read of each; the others are scored
    pub n_read: usize,
    pub log: &'m Log,
    pub signals: &'m Signals,
}

impl<'m> Measure<'m> {
    /// Measures each block's cost and the curve. What was measured is kept in `part` until all is: the same command goes on there.
    pub fn run(&self, part: &Path) -> Result<Costs> {
        let dims = self.model.dims();
        let mut part = Part::new(part.to_owned(), self.key());
        let measurements: Vec<(Block, f64)> = prune::measurements(&dims).collect();
        part.blocks.truncate(measurements.len());
        let (n_blocks, n_ratios) = (measurements.len() as u64, RATIOS.len() as u64);
        let bar = self.log.progress("measuring", n_blocks * OF_BLOCKS as u64 + n_ratios * OF_CURVE as u64, "windows");
        bar.inc((part.blocks.len() * OF_BLOCKS + part.curve.len() * OF_CURVE) as u64);

        let (of_blocks, of_curve) = self.windows.split_at(OF_BLOCKS);
        let mut session = self.session()?;
        let none: Shares = vec![[0.0; 2]; dims.n_layer()];
        if part.blocks.len() < measurements.len() {
            // Read in the same pieces, so that nothing but the block differs.
            self.prune(&mut session, none.clone())?;
            let read = |window: &Vec<Token>| self.read_block(&mut session, window);
            let bases = of_blocks.iter().map(read).collect::<Result<Vec<_>>>()?;
            for &(block, share) in &measurements[part.blocks.len()..] {
                // Of experts nothing is left out, and what serves nothing that is read costs nothing.
                if block.units(&dims) == 0 || block.il + 1 >= dims.n_read() {
                    bar.inc(OF_BLOCKS as u64);
                    part.blocks.push(0.0);
                    continue;
                }
                let mut shares = none.clone();
                shares[block.il][block.kind as usize] = share;
                self.prune(&mut session, shares)?;
                let (mut on, mut quotes) = (Scores::default(), Scores::default());
                for (window, base) in of_blocks.iter().zip(&bases) {
                    let read = self.read_block(&mut session, window)?;
                    self.score(&mut session, &read.on, &base.on, &window[self.n_read..], &mut on)?;
                    let quote = quote(window, self.n_read);
                    self.score(&mut session, &read.quote, &base.quote, quote, &mut quotes)?;
                    bar.inc(1);
                }
                part.blocks.push((1.0 - QUOTES) * mean_kl(&on.compared) + QUOTES * mean_kl(&quotes.compared));
                part.save()?;
            }
        }
        let layers = LayerCosts::of(&part.blocks);
        if part.curve.len() < RATIOS.len() {
            let mut dense = self.session()?;
            let bases = of_curve.iter().map(|w| self.read(&mut dense, w)).collect::<Result<Vec<_>>>()?;
            for &ratio in &RATIOS[part.curve.len()..] {
                let shares = prune::cheapest(&layers, ratio, &dims);
                // More than this cannot be left out, as keys and values are always made.
                if prune::saved(&shares, &dims) < ratio {
                    break;
                }
                self.prune(&mut session, shares)?;
                let mut scores = Scores::default();
                let mut times = Vec::new();
                for (i, (window, base)) in of_curve.iter().zip(&bases).enumerate() {
                    let read = self.read(&mut session, window)?;
                    self.score(&mut session, &read, base, &window[self.n_read..], &mut scores)?;
                    // The first reading after the plan changed builds graphs.
                    if (1..=TIMED).contains(&i) {
                        let whole = self.read(&mut dense, &window[..=self.n_read])?;
                        times.push(read.time.as_secs_f64() / whole.time.as_secs_f64());
                    }
                    bar.inc(1);
                }
                times.sort_by(f64::total_cmp);
                let perplexity = perplexity_ratio(&scores.compared);
                part.curve.push(Measured {
                    ratio,
                    time: times[times.len() / 2],
                    kl: mean_kl(&scores.compared),
                    perplexity,
                });
                part.save()?;
            }
        }
        bar.finish_and_clear();
        let costs = Costs { layers, curve: part.curve };
        let numbers = costs.layers.iter().flat_map(|c| [c.attn, c.mlp]).chain(costs.curve.iter().map(|p| p.kl));
        match numbers.into_iter().all(f64::is_finite) {
            true => Ok(costs),
            false => Err(Error::failed("the model computes values that are not numbers: nothing was written")),
        }
    }

    /// XXH3 of all that the measurements depend on.
    fn key(&self) -> String {
        let mut hash = Xxh3::new();
        hash.update(env!("CARGO_PKG_VERSION").as_bytes());
        hash.update(&QUOTES.to_le_bytes());
        hash.update(&self.model.gguf().fingerprint().to_le_bytes());
        hash.update(format!("{:?} {:?} {}", self.context, self.model.kernels(), self.n_read).as_bytes());
        self.windows.iter().flatten().for_each(|t| hash.update(&t.to_le_bytes()));
        format!("{:016x}", hash.digest())
    }

    fn session(&self) -> Result<Session<'m>> {
        let n = self.windows[0].len();
        let context = engine::Options { n_ctx: Some(u32::try_from(n).unwrap_or(u32::MAX)), ..self.context.clone() };
        Session::new(self.model, &context, 1, n - self.n_read, self.signals.interrupt.clone())
    }

    /// Lets the session read by this budget.
    fn prune(&self, session: &mut Session, shares: Shares) -> Result<()> {
        let dims = self.model.dims();
        let ratio = prune::saved(&shares, &dims);
        let options = prune::Options { spread: Spread::Calibrated, min_tokens: Some(2), ..prune::Options::new(ratio) };
        let sources = Sources { calibration: Some((self.calibration, 0)), shares: Some(shares), replay: None };
        let setup = prune::prepare(&options, dims, self.model.layers(), sources, self.context.n_threads_batch)?;
        session.set_pruning(Some(setup))
    }

    /// Reads a window's context, and what comes after it.
    fn read(&self, session: &mut Session, window: &[Token]) -> Result<Followed> {
        let (context, after) = window.split_at(self.n_read);
        Followed::new(session, context, after).map_err(|e| self.signals.named(e))
    }

    /// [`Measure::read`], and the quote.
    fn read_block(&self, session: &mut Session, window: &[Token]) -> Result<Read> {
        let on = self.read(session, window)?;
        let quote = on.instead(session, self.n_read, quote(window, self.n_read)).map_err(|e| self.signals.named(e))?;
        Ok(Read { on, quote })
    }

    /// Scores the tokens `after` a context that was read as in `read`.
    fn score(
        &self,
        session: &mut Session,
        read: &Followed,
        base: &Followed,
        after: &[Token],
        scores: &mut Scores,
    ) -> Result<()> {
        let scored = scores.add_followed(session, read, Some(base), None, after, self.context.n_threads_batch);
        scored.map_err(|e| self.signals.named(e))
    }
}
