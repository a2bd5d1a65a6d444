//! Which heads and channels are left out, and what decides it.

use std::path::{Path, PathBuf};

use super::calibration::path_for;

/// Most that can be asked for to be left out.
pub const MAX_RATIO: f64 = 0.8;

/// What decides which heads and channels a batch runs on (algorithm.md gives the sources).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Probe Pruning: a small probe of the batch, fused with history
    Pp,
    /// The probe is the whole batch: the upper bound on quality, no method to save time
    FullBatch,
    /// Probe Pruning's metric on calibration statistics alone
    Static,
    /// Wanda on structures
    WandaSp,
    /// FLAP
    Flap,
    /// FLAP with the means divided by the batch size once more, as Probe Pruning's code has it
    FlapAsCoded,
}

impl Method {
    /// Its number in files; none is given twice.
    pub fn number(self) -> u32 {
        match self {
            Method::Pp => 0,
            Method::FullBatch => 1,
            Method::Static => 2,
            Method::WandaSp => 3,
            Method::Flap => 4,
            Method::FlapAsCoded => 5,
        }
    }

    /// Name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Method::Pp => "pp",
            Method::FullBatch => "full-batch",
            Method::Static => "static",
            Method::WandaSp => "wanda-sp",
            Method::Flap => "flap",
            Method::FlapAsCoded => "flap-as-coded",
        }
    }

    /// Whether the choice is made anew for each batch.
    pub fn looks_at_batch(self) -> bool {
        matches!(self, Method::Pp | Method::FullBatch)
    }
}

/// Which tokens and samples are the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picker {
    /// At even distances
    Even,
    /// Those of the largest residual norm, as in the paper
    Residual,
}

impl Picker {
    /// Its number in files; none is given twice.
    pub fn number(self) -> u32 {
        match self {
            Picker::Even => 0,
            Picker::Residual => 1,
        }
    }
}

/// What a channel's states and weights are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// The paper's: energy times `sqrt(sum_j W_jk^4)`
    Ppsp,
    /// Energy of the states of each token divided by their norm, times `sqrt(sum_j W_jk^2)`
    Normalised,
}

impl Metric {
    /// Its number in files; none is given twice.
    pub fn number(self) -> u32 {
        match self {
            Metric::Ppsp => 0,
            Metric::Normalised => 1,
        }
    }
}

/// What of earlier batches the probe is fused with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryKind {
    /// Nothing
    None,
    /// One mean for each channel
    Channel,
    /// One mean for each channel and position, as in the paper
    Position,
}

impl HistoryKind {
    /// Its number in files; none is given twice.
    pub fn number(self) -> u32 {
        match self {
            HistoryKind::None => 0,
            HistoryKind::Channel => 1,
            HistoryKind::Position => 2,
        }
    }
}

/// How what is left out is spread over the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spread {
    /// By the paper's rule: the same share of heads and channels in each layer but the first ones. The ratio counts heads and channels
    Paper,
    /// The same share of heads and channels in each layer but the first ones. From here on the ratio counts weights
    Uniform,
    /// More with depth, see `budget::depth`
    Depth,
    /// At the least cost by what `pp-run calibrate` measured on the model, see `cost::cheapest`
    Calibrated,
    /// As this file says, see `budget::parse`
    File(PathBuf),
}

impl HistoryKind {
    /// Name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            HistoryKind::None => "none",
            HistoryKind::Channel => "channel",
            HistoryKind::Position => "position",
        }
    }
}

impl Spread {
    /// Name in files; a plan in a file is named by that.
    pub fn name(&self) -> String {
        match self {
            Spread::Paper => "paper".into(),
            Spread::Uniform => "uniform".into(),
            Spread::Depth => "depth".into(),
            Spread::Calibrated => "calibrated".into(),
            Spread::File(path) => path.display().to_string(),
        }
    }
}

/// Which heads and channels to leave out.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Share to leave out of prompts and of scored texts, over all layers: more than 0, at most [`MAX_RATIO`]. With `target` it is 0 until the
    /// model's curve is known
    pub ratio: f64,
    /// `--prune auto`: the ratio is the largest whose measured KL divergence is no more than this
    pub target: Option<f64>,
    /// KL divergence that a long prompt may show at the end of its first piece: if it shows more, the rest is pruned less
    pub guard: Option<f64>,
    /// How it is spread over the blocks
    pub spread: Spread,
    /// Share of heads and channels to leave out of answers, by the paper's rule; 0 = they run dense
    pub answer: f64,
    /// What decides
    pub method: Method,
    /// The probe
    pub picker: Picker,
    /// Share of the tokens in the probe
    pub tokens: f64,
    /// Share of the samples in the probe
    pub samples: f64,
    /// What a state is worth
    pub metric: Metric,
    /// First layers that stay whole
    pub skip: usize,
    /// Attention stays whole
    pub mlp_only: bool,
    /// What the probe is fused with
    pub history: HistoryKind,
    /// Share of the old in the history after a batch; 1 = the history stays as it was calibrated
    pub momentum: f64,
    /// The number of kept channels is a multiple of this
    pub multiple: usize,
    /// Shortest piece of a prompt that is pruned; `None` = measured
    pub min_tokens: Option<usize>,
    /// The statistics; next to the model if not given
    pub calibration: Option<PathBuf>,
    /// Where to write what each block kept
    pub dump: Option<PathBuf>,
    /// Keep what this dump says
    pub replay: Option<PathBuf>,
}

impl Options {
    /// For one prompt at a time, by measurement (README): few, evenly spaced tokens, and no history.
    pub fn new(ratio: f64) -> Options {
        Options {
            ratio,
            target: None,
            guard: None,
            spread: Spread::Depth,
            answer: 0.0,
            method: Method::Pp,
            picker: Picker::Even,
            tokens: 0.1,
            samples: 1.0,
            metric: Metric::Normalised,
            skip: 3,
            mlp_only: false,
            history: HistoryKind::None,
            momentum: 0.99,
            multiple: 64,
            min_tokens: None,
            calibration: None,
            dump: None,
            replay: None,
        }
    }

    /// The paper's own configuration.
    pub fn paper(ratio: f64) -> Options {
        Options {
            spread: Spread::Paper,
            picker: Picker::Residual,
            tokens: 0.5,
            samples: 0.05,
            metric: Metric::Ppsp,
            history: HistoryKind::Position,
            ..Options::new(ratio)
        }
    }

    /// Whether statistics of a calibration are needed.
    pub fn needs_calibration(&self) -> bool {
        match self.method {
            Method::Pp => self.history != HistoryKind::None || self.spread == Spread::Calibrated,
            Method::FullBatch => self.spread == Spread::Calibrated,
            _ => true,
        }
    }

    /// How much is left out, as `--prune` takes it.
    pub fn amount(&self) -> String {
        self.target.map_or_else(|| self.ratio.to_string(), |kl| format!("auto:{kl}"))
    }

    /// Where the calibration of the model at `path` is.
    pub fn calibration_of(&self, path: &Path) -> PathBuf {
        self.calibration.clone().unwrap_or_else(|| path_for(path))
    }
}
