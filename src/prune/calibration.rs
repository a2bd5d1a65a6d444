//! Calibration files: statistics of a model's blocks on some text, next to the model.
//!
//! Layout, little-endian: magic, version (u32), length of the header (u32), header (JSON), for each block the six vectors of
//! [`BlockStats`] as F32, then for each block its table by position (if any), then XXH3 of all that (u64).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use ggml::Map;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::block::{Block, all_blocks};
use super::cost::Costs;
use crate::error::{Error, Result};
use crate::weights::Dims;

const MAGIC: &[u8; 8] = b"PPRUNCAL";
/// Version 1 told models apart by another fingerprint; version 2 had neither energies of normalised states nor costs.
const VERSION: u32 = 3;
/// Bytes before the header: magic, version, length of the header.
const FIXED: usize = 16;
/// Most bytes of a header: no header comes near this.
const MAX_HEADER: usize = 1 << 16;

/// Statistics of a block that a method starts from; see `pp-run calibrate`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BlockStats {
    /// Mean of squares of each channel
    pub energy: Vec<f32>,
    /// Mean of each channel
    pub mean: Vec<f32>,
    /// Fluctuation of each channel around its mean
    pub variance: Vec<f32>,
    /// The mean as Probe Pruning's code has it: divided by the batch size once more
    pub mean_as_coded: Vec<f32>,
    /// The fluctuation around that
    pub variance_as_coded: Vec<f32>,
    /// Mean of squares of each channel of states that are divided by their root mean square, token by token
    pub normalised: Vec<f32>,
    /// Mean of squares by position, `[n_pos, n_channels]`; empty if left out
    pub positions: Vec<f32>,
}

/// Statistics of a model on a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Windows of the text
    pub n_seqs: usize,
    /// Tokens of a window
    pub seq_len: usize,
    /// Windows in one pass
    pub batch: usize,
    /// Where the text came from
    pub text: String,
    /// Statistics of each block
    pub blocks: BTreeMap<Block, BlockStats>,
    /// What leaving parts of the model out costs, if that was measured
    pub costs: Option<Costs>,
}

/// The file next to a model: its name with `.ppcal` for `.gguf`.
pub fn path_for(model: &Path) -> PathBuf {
    model.with_extension("ppcal")
}

impl Calibration {
    /// The file's bytes, of the model with this fingerprint ([`crate::gguf::Gguf::fingerprint`]).
    pub fn to_bytes(&self, dims: &Dims, fingerprint: u64) -> Vec<u8> {
        let positions = self.blocks.values().all(|b| !b.positions.is_empty());
        let header = json!({
            "fingerprint": format!("{fingerprint:016x}"),
            "n_seqs": self.n_seqs,
            "seq_len": self.seq_len,
            "batch": self.batch,
            "positions": positions,
            "text": self.text,
            "costs": self.costs.as_ref().map(Costs::to_json),
        })
        .to_string();
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((header.len() as u32).to_le_bytes());
        out.extend(header.as_bytes());
        let mut push = |values: &[f32]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
        for block in all_blocks(dims) {
            let b = &self.blocks[&block];
            let vectors = [&b.energy, &b.mean, &b.variance, &b.mean_as_coded, &b.variance_as_coded, &b.normalised];
            vectors.into_iter().for_each(|v| push(v));
        }
        if positions {
            all_blocks(dims).for_each(|block| push(&self.blocks[&block].positions));
        }
        let sum = xxh3_64(&out);
        out.extend(sum.to_le_bytes());
        out
    }

    /// Reads the file of a model of shape `dims`; with the checksum in it, which tells these statistics from others. [`crate::error::Kind::Input`] if there is none,
    /// [`crate::error::Kind::Malformed`] if it is damaged, of another version or of another model.
    pub fn read(path: &Path, dims: &Dims, fingerprint: u64) -> Result<(Calibration, u64)> {
        Calibration::read_inner(path, dims, fingerprint).map_err(|e| e.in_file(path))
    }

    fn read_inner(path: &Path, dims: &Dims, fingerprint: u64) -> Result<(Calibration, u64)> {
        let reading = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::input("no such file: pp-run calibrate -m MODEL makes these statistics")
            }
            _ => Error::input(format!("cannot be read: {e}")),
        };
        // To open a FIFO would wait for a writer, so that the kind of file is looked at first.
        let stat = std::fs::metadata(path).map_err(reading)?;
        if !stat.is_file() {
            return Err(Error::input("is not a regular file"));
        }
        if stat.len() < (FIXED + 8) as u64 {
            return Err(Error::malformed(format!("has {} bytes: no calibration file", stat.len())));
        }
        let map = Map::new(File::open(path).map_err(reading)?).map_err(reading)?;
        let calibration = Calibration::parse(&map, dims, fingerprint)?;
        let sum = map.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok((calibration, sum))
    }

    /// Whether there are means for each position of a context; [`crate::error::Kind::Usage`] if not.
    pub fn require_positions(&self, n_ctx: usize) -> Result<()> {
        if self.blocks.values().any(|b| b.positions.is_empty()) {
            return Err(Error::usage(
                "has no means per position (it was made with --no-positions): use --prune-history channel, or calibrate anew",
            ));
        }
        if n_ctx > self.seq_len {
            return Err(Error::usage(format!(
                "has means for {} positions, but the context has {n_ctx}: use --prune-history channel, a smaller context, or \
                 pp-run calibrate --seq-len {n_ctx}",
                self.seq_len
            )));
        }
        Ok(())
    }

    /// [`Calibration::read`] of the file's bytes.
    pub fn parse(bytes: &[u8], dims: &Dims, fingerprint: u64) -> Result<Calibration> {
        let again = "pp-run calibrate makes it anew";
        if bytes.len() < FIXED + 8 || &bytes[..8] != MAGIC {
            return Err(Error::malformed("is no calibration file of pp-run"));
        }
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if word(8) != VERSION {
            return Err(Error::malformed(format!("is of version {}, expected {VERSION}: {again}", word(8))));
        }
        let (body, sum) = bytes.split_at(bytes.len() - 8);
        if xxh3_64(body).to_le_bytes() != *sum {
            return Err(Error::malformed(format!("is damaged (its checksum does not match): {again}")));
        }
        let broken = || Error::malformed(format!("has a broken header: {again}"));
        let length = word(12) as usize;
        if length > MAX_HEADER || length > body.len() - FIXED {
            return Err(broken());
        }
        let (header, mut data) = body[FIXED..].split_at(length);
        let header: Value = serde_json::from_slice(header).map_err(|_| broken())?;
        if header["fingerprint"].as_str() != Some(&format!("{fingerprint:016x}")) {
            return Err(Error::malformed(format!("is of another model: {again}")));
        }
        let number = |key: &str| {
            header[key].as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0).ok_or_else(broken)
        };
        let (n_seqs, seq_len, batch) = (number("n_seqs")?, number("seq_len")?, number("batch")?);
        let positions = header["positions"].as_bool().ok_or_else(broken)?;
        let channels: usize = all_blocks(dims).map(|b| b.channels(dims)).sum();
        let rows = 6 + if positions { seq_len } else { 0 };
        if channels.checked_mul(rows).and_then(|n| n.checked_mul(4)) != Some(data.len()) {
            return Err(broken());
        }
        let mut take = |n: usize| -> Vec<f32> {
            let (head, rest) = data.split_at(4 * n);
            data = rest;
            head.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
        };
        let mut blocks: BTreeMap<Block, BlockStats> = all_blocks(dims)
            .map(|block| {
                let n = block.channels(dims);
                let [energy, mean, variance, mean_as_coded, variance_as_coded, normalised] = [(); 6].map(|()| take(n));
                let positions = Vec::new();
                (block, BlockStats { energy, mean, variance, mean_as_coded, variance_as_coded, normalised, positions })
            })
            .collect();
        if positions {
            for (block, stats) in &mut blocks {
                stats.positions = take(block.channels(dims) * seq_len);
            }
        }
        let numbers = |b: &BlockStats| {
            let squares = [&b.energy, &b.variance, &b.variance_as_coded, &b.normalised, &b.positions]
                .into_iter()
                .flatten()
                .all(|v| *v >= 0.0 && v.is_finite());
            squares && [&b.mean, &b.mean_as_coded].into_iter().flatten().all(|v| v.is_finite())
        };
        if !blocks.values().all(numbers) {
            return Err(Error::malformed(format!("has statistics that are NaN, infinite or negative: {again}")));
        }
        let text = header["text"].as_str().unwrap_or_default().to_owned();
        let costs = match &header["costs"] {
            Value::Null => None,
            costs => Some(Costs::from_json(costs, dims.n_layer()).ok_or_else(broken)?),
        };
        Ok(Calibration { n_seqs, seq_len, batch, text, blocks, costs })
    }
}

#[cfg(test)]
mod tests {
    use super::super::cost::{LayerCosts, Measured};
    use super::*;
    use crate::weights::LayerDims;

    fn dims(n_ff: usize) -> Dims {
        let layer = LayerDims::gated([2, 1, 2], n_ff);
        Dims::alike(2, 4, layer)
    }

    fn sample(positions: bool) -> (Dims, Calibration) {
        let dims = dims(6);
        let stats = |block: Block| {
            let n = block.channels(&dims);
            let v = |k: f32| (0..n).map(|i| k + i as f32).collect::<Vec<f32>>();
            BlockStats {
                energy: v(1.0),
                mean: v(-2.0),
                variance: v(3.0),
                mean_as_coded: v(4.0),
                variance_as_coded: v(5.0),
                normalised: v(6.0),
                positions: if positions { vec![0.5; n * 3] } else { Vec::new() },
            }
        };
        let blocks = all_blocks(&dims).map(|b| (b, stats(b))).collect();
        let measured = Measured { ratio: 0.25, time: 0.8, kl: 0.01, perplexity: 1.01 };
        let costs = Costs { layers: vec![LayerCosts { attn: 0.5, mlp: -0.25 }], curve: vec![measured] };
        let costs = positions.then_some(costs);
        (dims, Calibration { n_seqs: 2, seq_len: 3, batch: 2, text: "a.txt".into(), blocks, costs })
    }

    #[test]
    fn what_is_written_is_read() {
        for positions in [true, false] {
            let (dims, calibration) = sample(positions);
            let bytes = calibration.to_bytes(&dims, 7);
            assert_eq!(Calibration::parse(&bytes, &dims, 7).unwrap(), calibration);
        }
    }

    #[test]
    fn no_damage_passes() {
        let (dims, calibration) = sample(true);
        let bytes = calibration.to_bytes(&dims, 7);
        for n in 0..bytes.len() {
            assert!(Calibration::parse(&bytes[..n], &dims, 7).is_err(), "cut to {n}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Calibration::parse(&damaged, &dims, 7).is_err(), "bit {bit}");
        }
        let message = |r: Result<Calibration>| r.unwrap_err().to_string();
        assert!(message(Calibration::parse(&bytes, &dims, 8)).contains("another model"));
        let other = self::dims(7);
        assert!(message(Calibration::parse(&bytes, &other, 7)).contains("broken"));
        let mut version = bytes.clone();
        version[8] = 9;
        assert!(message(Calibration::parse(&version, &dims, 7)).contains("version 9"));
    }
}
