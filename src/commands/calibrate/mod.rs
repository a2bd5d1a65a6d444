//! `pp-run calibrate`: statistics of a model's blocks, for pruning's history and for the methods that never look at a batch; and what
//! leaving out parts of the model costs.

mod costs;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use self::costs::{Measure, WINDOWS};
use super::input::read_text;
use super::load::load;
use super::output::{print, write_file};
use super::signals::Signals;
use crate::engine::{Moments, Next, Session};
use crate::error::{Error, Result};
use crate::graph::CacheType;
use crate::log::{self, Log};
use crate::model::Model;
use crate::prune::{Block, BlockStats, Calibration, Costs, Scale, all_blocks, path_for};
use crate::sampler::{self, Sampler};
use crate::system::memory;
use crate::tokenizer::{Token, Tokenizer};
use crate::{engine, model};

/// Windows that the model writes side by side for costs.
const GROUP: usize = 8;

#[derive(Debug, Clone)]
pub struct Options {
    pub log: log::Options,
    pub model: model::Options,
    pub context: engine::Options,
    /// `-f`; `None` = the model writes the text
    pub file: Option<PathBuf>,
    /// `-o`
    pub output: Option<PathBuf>,
    /// `--seqs`
    pub n_seqs: usize,
    /// `--seq-len`
    pub seq_len: usize,
    /// `--batch`: windows in one pass
    pub batch: usize,
    /// Means per position too.
    pub positions: bool,
    /// Measure what leaving out parts of the model costs
    pub costs: bool,
}

/// Runs the dense model over the windows and writes what its blocks did.
pub fn run(options: &Options, signals: &Signals) -> Result<()> {
    let log = Log::new(&options.log, false)?;
    let text = options.file.as_deref().map(read_text).transpose()?;
    let (loaded, tokenizer) = load(&options.model, &options.context, &[], &log, signals)?;
    let model = loaded.require_own("calibrate")?;
    let &Options { n_seqs, seq_len, positions, .. } = options;
    // FLAP needs two batches at least, as its fluctuation is that between batches.
    let batch = options.batch.min(n_seqs.div_ceil(2));
    let of_costs = match options.costs {
        true => Some(costs::window(model.hparams().n_ctx_train as usize)?),
        false => None,
    };
    let n_costs = of_costs.map_or(0, |(n_read, n_scored)| WINDOWS * (n_read + n_scored));
    let given = match &text {
        None => None,
        Some(text) => {
            let tokens = tokenizer.encode(text, true, false)?;
            if tokens.len() < n_seqs * seq_len + n_costs {
                let and = if n_costs > 0 { format!(" and {n_costs} more for costs") } else { String::new() };
                let or = if n_costs > 0 { ", or --no-costs" } else { "" };
                return Err(Error::malformed(format!(
                    "has {} tokens, but {n_seqs} windows of {seq_len} are {}{and}: use a longer text, or less of --seqs or --seq-len{or}",
                    tokens.len(),
                    n_seqs * seq_len
                ))
                .in_file(options.file.as_deref().unwrap_or("-".as_ref())));
            }
            Some(tokens)
        }
    };
    let windows = given.as_ref().map(|t| t.chunks_exact(seq_len).take(n_seqs).map(<[_]>::to_vec).collect::<Vec<_>>());
    let dims = model.dims();
    let channels: usize = all_blocks(&dims).map(|b| b.channels(&dims)).sum();
    let by_position = if positions { (channels * seq_len * 4) as u64 } else { 0 };
    // They are needed twice: as running means, and as the bytes of the file.
    memory::require(2 * by_position, "the means by position", "use --no-positions or a smaller --seq-len")?;

    let mut context = options.context.clone();
    context.n_ctx = Some(u32::try_from(seq_len).unwrap_or(u32::MAX));
    // Statistics are as exact as those of the reference.
    context.exact = true;
    (context.cache_type_k, context.cache_type_v) = (CacheType::F32, CacheType::F32);
    (context.n_batch, context.n_ubatch) = (u32::MAX, u32::try_from(batch * seq_len).unwrap_or(u32::MAX));
    let mut session = Session::new(model, &context, batch, batch * seq_len, signals.interrupt.clone())?;
    let bar = log.progress("calibrating", (n_seqs * seq_len) as u64, "tokens");
    let mut running: BTreeMap<Block, Running> = BTreeMap::new();
    let mut done = 0;
    let interrupted = |e| signals.named(e);
    while done < n_seqs {
        let n = batch.min(n_seqs - done);
        let written;
        let group = match &windows {
            Some(windows) => &windows[done..done + n],
            None => {
                let tell = |tokens: usize| bar.set_position((done * seq_len + tokens / 2) as u64);
                written = write(&mut session, &tokenizer, done..done + n, seq_len, tell).map_err(interrupted)?;
                &written[..]
            }
        };
        let seqs: Vec<&[Token]> = group.iter().map(Vec::as_slice).collect();
        for (block, moments) in session.moments(&seqs, positions).map_err(interrupted)? {
            running.entry(block).or_insert_with(|| Running::new(&moments)).add(&moments, done, n, seq_len);
        }
        done += n;
        bar.set_position((done * seq_len) as u64);
    }
    bar.finish_and_clear();
    let blocks: BTreeMap<Block, BlockStats> = running.into_iter().map(|(b, r)| (b, r.finish())).collect();
    if let Some((block, _)) = blocks.iter().find(|(_, s)| s.energy.iter().chain(&s.variance).any(|x| !x.is_finite())) {
        return Err(Error::failed(format!(
            "layer {} ({}) computes values that are not numbers: nothing was written (try --check-tensors)",
            block.il,
            block.kind.name()
        )));
    }
    let text = options.file.as_ref().map_or("written by the model".to_owned(), |f| f.display().to_string());
    let mut calibration = Calibration { n_seqs, seq_len, batch, text, blocks, costs: None };
    let path = options.output.clone().unwrap_or_else(|| path_for(&options.model.path));
    drop(session);
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    if let Some((n_read, n_scored)) = of_costs {
        let length = n_read + n_scored;
        let mut windows: Vec<Vec<Token>> = match &given {
            Some(tokens) => tokens[n_seqs * seq_len..].chunks_exact(length).take(WINDOWS).map(<[_]>::to_vec).collect(),
            None => write_for_costs(options, model, &tokenizer, length, &log, signals)?,
        };
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        windows.iter_mut().for_each(|w| w[0] = bos.unwrap_or(w[0]));
        let measure = Measure {
            model,
            context: options.context.clone(),
            calibration: &calibration,
            windows,
            n_read,
            log: &log,
            signals,
        };
        calibration.costs = Some(measure.run(&part)?);
    }
    let bytes = calibration.to_bytes(&dims, model.gguf().fingerprint());
    write_file(&path, &bytes)?;
    if let Some(costs) = &calibration.costs {
        // Nothing is lost if it stays.
        let _ = std::fs::remove_file(&part);
        print(&table(costs, model.scale()))?;
    }
    log.note(&format!(
        "{n_seqs} windows of {seq_len} tokens, {batch} at a time: {} in {}",
        memory::human(bytes.len() as u64),
        path.display()
    ));
    Ok(())
}

/// The curve for people to read.
fn table(costs: &Costs, scale: Scale) -> String {
    let mut text = "left out  time   KL       perplexity\n".to_owned();
    for p in &costs.curve {
        let perplexity = 100.0 * (p.perplexity - 1.0);
        text += &format!(
            "{:>7.0}%  {:.2}x  {:<7.4}  {perplexity:+.1}%  {}\n",
            100.0 * p.ratio,
            p.time,
            p.kl,
            scale.in_words(p.kl)
        );
    }
    text
}

/// Windows for costs, written by the model in groups, as the cache holds all of a group.
fn write_for_costs(
    options: &Options,
    model: &Model,
    tokenizer: &Tokenizer,
    length: usize,
    log: &Log,
    signals: &Signals,
) -> Result<Vec<Vec<Token>>> {
    let context = engine::Options { n_ctx: Some(u32::try_from(length).unwrap_or(u32::MAX)), ..options.context.clone() };
    let mut session = Session::new(model, &context, GROUP, GROUP, signals.interrupt.clone())?;
    let bar = log.progress("writing", (WINDOWS * length) as u64, "tokens");
    let mut windows = Vec::new();
    while windows.len() < WINDOWS {
        // Other seeds than those of the statistics.
        let seeds = options.n_seqs + windows.len()..options.n_seqs + WINDOWS.min(windows.len() + GROUP);
        let tell = |tokens: usize| bar.set_position((windows.len() * length + tokens) as u64);
        let group = write(&mut session, tokenizer, seeds, length, tell).map_err(|e| signals.named(e))?;
        windows.extend(group);
    }
    bar.finish_and_clear();
    Ok(windows)
}

/// Text that the model itself writes: windows side by side, drawn from its distribution with these seeds.
fn write(
    session: &mut Session,
    tokenizer: &Tokenizer,
    seeds: Range<usize>,
    seq_len: usize,
    mut tell: impl FnMut(usize),
) -> Result<Vec<Vec<Token>>> {
    let eog = tokenizer.eog_tokens();
    let sampler = |i: usize| {
        let seed = u32::try_from(i).unwrap_or(0);
        // The model's own distribution without its unlikeliest tokens; no window ends before its length.
        let options = sampler::Options {
            seed: Some(seed),
            temperature: 1.0,
            top_k: 100,
            top_p: 1.0,
            min_p: 0.0,
            ignore_eos: true,
            ..Default::default()
        };
        Sampler::new(&options, tokenizer.n_vocab(), seq_len, &eog, None)
    };
    let mut samplers: Vec<Sampler> = seeds.map(sampler).collect();
    let begin = tokenizer.bos().or(tokenizer.eos()).unwrap_or(0);
    let n = samplers.len();
    let mut windows = vec![vec![begin]; n];
    for pos in 0..seq_len - 1 {
        let next: Vec<Next> = (0..n).map(|seq| Next { token: windows[seq][pos], pos, seq }).collect();
        let logits = session.step(&next)?;
        for ((window, sampler), logits) in
            windows.iter_mut().zip(&mut samplers).zip(logits.chunks_exact(tokenizer.n_vocab()))
        {
            window.push(sampler.sample(logits)?);
        }
        tell(n * pos);
    }
    Ok(windows)
}

/// Running statistics of a block, by the rules of algorithm.md 1.4 and 2.
struct Running {
    energy: Vec<f64>,
    normalised: Vec<f64>,
    plain: Flap,
    as_coded: Flap,
    positions: Vec<f32>,
}

/// FLAP's mean and fluctuation of each channel. The recursions hold for one position; summed over positions they have the same form.
#[derive(Clone)]
struct Flap {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Flap {
    /// `weight` says how much the mean of a batch counts: as much as its windows, or 1 as in Probe Pruning's code.
    fn add(&mut self, m: &Moments, done: f64, n: f64, weight: f64, rows: f64) {
        for k in 0..self.mean.len() {
            let (mean, energy) = (f64::from(m.mean[k]), f64::from(m.energy[k]));
            let old = self.mean[k];
            let new = old * done / (done + n) + mean * weight / (done + n);
            self.mean[k] = new;
            if done > 0.0 {
                let sum = rows * (energy - (new + old) * mean + new * old);
                self.variance[k] = self.variance[k] * (done - 1.0) / (done + n - 1.0) + sum / (done + n);
            }
        }
    }
}

impl Running {
    fn new(m: &Moments) -> Running {
        let zeros = vec![0.0; m.mean.len()];
        let flap = Flap { mean: zeros.clone(), variance: zeros.clone() };
        Running {
            energy: zeros.clone(),
            normalised: zeros,
            plain: flap.clone(),
            as_coded: flap,
            positions: vec![0.0; m.positions.len()],
        }
    }

    /// Adds a batch of `n` windows, of which `done` came before.
    fn add(&mut self, m: &Moments, done: usize, n: usize, seq_len: usize) {
        let (done, n, rows) = (done as f64, n as f64, (n * seq_len) as f64);
        let (old, new) = (done / (done + n), n / (done + n));
        self.energy.iter_mut().zip(&m.energy).for_each(|(h, &e)| *h = *h * old + f64::from(e) * new);
        self.normalised.iter_mut().zip(&m.normalised).for_each(|(h, &e)| *h = *h * old + f64::from(e) * new);
        self.positions.iter_mut().zip(&m.positions).for_each(|(h, &e)| *h = *h * old as f32 + e * new as f32);
        self.plain.add(m, done, n, n, rows);
        self.as_coded.add(m, done, n, 1.0, rows);
    }

    fn finish(self) -> BlockStats {
        let floats = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect();
        BlockStats {
            energy: floats(self.energy),
            mean: floats(self.plain.mean),
            variance: floats(self.plain.variance),
            mean_as_coded: floats(self.as_coded.mean),
            variance_as_coded: floats(self.as_coded.variance),
            normalised: floats(self.normalised),
            positions: self.positions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments of a batch of windows of one token and one channel.
    fn moments(x: &[f32]) -> Moments {
        let n = x.len() as f32;
        let energy = x.iter().map(|x| x * x).sum::<f32>() / n;
        // One channel has all of each token's norm.
        Moments {
            mean: vec![x.iter().sum::<f32>() / n],
            energy: vec![energy],
            normalised: vec![1.0],
            positions: vec![energy],
        }
    }

    #[test]
    fn running_means_and_flaps_two_variants() {
        let (first, second) = ([1.0f32, 3.0], [5.0f32, 7.0]);
        let mut r = Running::new(&moments(&first));
        r.add(&moments(&first), 0, 2, 1);
        r.add(&moments(&second), 2, 2, 1);
        let s = r.finish();
        // Mean of squares of 1, 3, 5, 7.
        assert_eq!((s.energy[0], s.normalised[0], s.positions[0]), (21.0, 1.0, 21.0));
        // Means 2, then 4; fluctuation ((5-4)(5-2) + (7-4)(7-2)) / 4.
        assert_eq!((s.mean[0], s.variance[0]), (4.0, 4.5));
        // As coded: the batch's mean once more by its size: 1, then 2; ((5-2)(5-1) + (7-2)(7-1)) / 4.
        assert_eq!((s.mean_as_coded[0], s.variance_as_coded[0]), (2.0, 10.5));
    }
}
