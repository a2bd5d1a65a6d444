//! Numbers as pictures of bars.

use crate::prune::Masks;
use crate::prune::{Block, BlockKind};
use crate::weights::Dims;

/// A bar of at most `width` columns for a share.
pub fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "\u{258f}", "\u{258e}", "\u{258d}", "\u{258c}", "\u{258b}", "\u{258a}", "\u{2589}"];
    let eighths = (share.clamp(0.0, 1.0) * (8 * width) as f64).round() as usize;
    "\u{2588}".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// How many of `n` units are kept, bucket by bucket, as blocks of that height.
fn heights(kept: &[i32], n: usize, columns: usize) -> String {
    const LEVELS: [char; 9] =
        ['\u{b7}', '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}'];
    let columns = columns.min(n).max(1);
    let mut counts = vec![0usize; columns];
    let bucket = |unit: usize| unit * columns / n;
    for &unit in kept {
        counts[bucket(usize::try_from(unit).unwrap_or(0).min(n - 1))] += 1;
    }
    let mut sizes = vec![0usize; columns];
    (0..n).for_each(|unit| sizes[bucket(unit)] += 1);
    let level = |(&count, &size): (&usize, &usize)| match count {
        0 => LEVELS[0],
        _ => LEVELS[(8 * count / size).max(1)],
    };
    counts.iter().zip(&sizes).map(level).collect()
}

/// What of each layer is in use: heads, and channels in buckets, if there are any; `width` columns.
pub fn map(masks: &Masks, dims: &Dims, width: usize) -> String {
    let heads = dims.layers.iter().map(|l| l.n_head).max().unwrap_or(0).min(32);
    let columns = width.saturating_sub(heads + 44).clamp(8, 128);
    let mut out = String::new();
    for il in 0..dims.n_layer() {
        let part = |kind: BlockKind, columns: usize| {
            let n = Block { il, kind }.units(dims);
            let (kept, picture) = match masks.get(&Block { il, kind }) {
                Some(kept) => (kept.len(), heights(kept, n, columns)),
                None => (n, "\u{2588}".repeat(columns.min(n))),
            };
            (picture, kept, n)
        };
        let (heads, kept, n) = part(BlockKind::Attn, heads);
        out.push_str(&format!("{il:>3}  heads {heads} {kept:>3}/{n}"));
        match part(BlockKind::Mlp, columns) {
            (_, _, 0) => {}
            (channels, kept, n) => out.push_str(&format!("  channels {channels} {kept:>5}/{n}")),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_heights() {
        assert_eq!(bar(0.5, 4), "\u{2588}\u{2588}");
        assert_eq!(bar(0.0, 4), "");
        assert_eq!(bar(9.0, 2), "\u{2588}\u{2588}");
        assert_eq!(heights(&[0, 1, 2, 3, 4], 8, 4), "\u{2588}\u{2588}\u{2584}\u{b7}");
        assert_eq!(heights(&[2], 3, 10), "\u{b7}\u{b7}\u{2588}");
    }
}
