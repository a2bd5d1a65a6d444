//! Budgets: which share of each block is left out, so that a given share of the weights is saved over the model.

use serde_json::Value;

use super::block::all_blocks;
use crate::error::{Error, Result};
use crate::weights::Dims;

/// Shares to leave out of the attention and of the MLP of each layer, 0 to 1; at 1 a block is dropped.
pub type Shares = Vec<[f64; 2]>;

/// Budgets that were solved for several ratios, by rising ratio.
pub type Curve = Vec<(f64, Shares)>;

/// How fast shares grow with depth, from 0 to 1: by this power of e.
const STEEPNESS: f64 = 3.0;
/// Most of an MLP that is left out while it is not dropped: what the best few channels compute costs little and serves much.
pub(super) const MOST: f64 = 0.9375;
/// Attention is dropped where the strength of pruning would be this share of the MLP.
const HEADS_LATER: f64 = 1.5;

/// Whether a share is all of a block.
pub fn is_all(share: f64) -> bool {
    share >= 1.0 - 1e-9
}

/// Share of the weights of the blocks that reading needs, see [`Dims::n_read`], that is saved. Of experts those count that a token is given to;
/// keys and values are made of all heads.
pub fn saved(shares: &[[f64; 2]], dims: &Dims) -> f64 {
    let n_read = dims.n_read();
    let mut all: f64 = dims.layers[..n_read].iter().map(|l| l.n_expert_weights as f64).sum();
    let mut saved = 0.0;
    for block in all_blocks(dims).filter(|b| b.il < n_read) {
        let share = shares[block.il][block.kind as usize];
        let share = if block.is_whole(dims) && !is_all(share) { 0.0 } else { share };
        let [none, whole] = [0, block.units(dims)].map(|n| block.weights(dims, n, true) as f64);
        saved += share * (whole - none);
        all += whole;
    }
    saved / all
}

/// The shares that `shares_at` has for the strength at which `ratio` of the weights is saved. It rises with the strength, 0 to 1.
pub(super) fn solve(ratio: f64, dims: &Dims, shares_at: impl Fn(f64) -> Shares) -> Shares {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if saved(&shares_at(middle), dims) < ratio { low = middle } else { high = middle }
    }
    shares_at(high)
}

/// The same share of each block, but for the first `skip` layers.
pub fn uniform(ratio: f64, skip: usize, dims: &Dims) -> Shares {
    solve(ratio, dims, |x| (0..dims.n_layer()).map(|il| if il < skip { [0.0; 2] } else { [x; 2] }).collect())
}

/// More with depth, but nothing of the first `skip` layers. What a token's later layers compute serves the tokens after it through the
/// keys and values of fewer layers, and those of the last layer that makes any serve none: it makes keys and values only.
///
/// On SmolLM2 leaving out half of an MLP costs ten times less at the end of the model than in its middle, and dropping one three to ten
/// times more than keeping its best sixteenth, so that shares grow as `exp(3 d)` up to [`MOST`], with `d` the depth from 0 to 1. Heads
/// cost more than channels for what they save, so that attention is whole or, where that strength comes to [`HEADS_LATER`], dropped.
///
/// Where an MLP is one of experts, heads are all that can be left out: their shares grow in the same way. With attention alone pruned, a half
/// of SmolLM2's heads costs a KL of 0.15 so, of 0.33 evenly, and of 0.44 if the later half of the blocks is dropped (wiki, 512 tokens and
/// 256 after).
pub fn depth(ratio: f64, skip: usize, dims: &Dims) -> Shares {
    let last = dims.n_read() - 1;
    let depth = |il: usize| il as f64 / last.max(1) as f64;
    // The strength at which all layers are at their most.
    let most = HEADS_LATER * STEEPNESS.exp();
    let shares = |il: usize, x: f64| match x * most * (STEEPNESS * (depth(il) - 1.0)).exp() {
        _ if il < skip => [0.0, 0.0],
        strength if il >= last && strength > 0.0 => [1.0, 1.0],
        strength if dims.layers[il].n_ff == 0 => [strength.min(1.0), 0.0],
        strength => [if strength >= HEADS_LATER { 1.0 } else { 0.0 }, strength.min(MOST)],
    };
    solve(ratio, dims, |x| (0..dims.n_layer()).map(|il| shares(il, x)).collect())
}

/// Shares for a ratio, between those of the curve's next points. [`crate::error::Kind::Usage`] if it is more than the curve has.
pub fn between(curve: &Curve, ratio: f64, dims: &Dims) -> Result<Shares> {
    let most = curve.last().map_or(0.0, |p| p.0);
    if ratio > most + 1e-9 {
        return Err(Error::usage(format!("--prune {ratio} is more than the plan has budgets for: {most:.3}")));
    }
    let none = vec![[0.0; 2]; dims.n_layer()];
    let above = curve.iter().position(|p| p.0 >= ratio).unwrap_or(curve.len() - 1);
    let high = &curve[above].1;
    let low = if above == 0 { &none } else { &curve[above - 1].1 };
    let mix = |x: f64| {
        let mix = |(a, b): (&[f64; 2], &[f64; 2])| [0, 1].map(|i| a[i] + x * (b[i] - a[i]));
        low.iter().zip(high).map(mix).collect()
    };
    Ok(solve(ratio, dims, mix))
}

/// Budgets in a file: JSON with `"pp-run prune plan": 1` and `"budgets"`, a list of objects `{"layers": [[attention, mlp], ..]}`.
/// [`crate::error::Kind::Malformed`] if it is none, or of a model of another number of layers.
pub fn parse(text: &str, dims: &Dims) -> Result<Curve> {
    let broken = || Error::malformed("is no plan for --prune-plan");
    let plan: Value = serde_json::from_str(text).map_err(|_| broken())?;
    if plan["pp-run prune plan"].as_u64() != Some(1) {
        return Err(broken());
    }
    let mut curve = Curve::new();
    for budget in plan["budgets"].as_array().filter(|b| !b.is_empty()).ok_or_else(broken)? {
        let layers = budget["layers"].as_array().ok_or_else(broken)?;
        if layers.len() != dims.n_layer() {
            return Err(Error::malformed(format!(
                "has budgets for {} layers, but the model has {}",
                layers.len(),
                dims.n_layer()
            )));
        }
        let share = |v: &Value| v.as_f64().filter(|x| (0.0..=1.0).contains(x));
        let shares = |v: &Value| Some([share(&v[0])?, share(&v[1])?]);
        let shares = layers.iter().map(shares).collect::<Option<Shares>>().ok_or_else(broken)?;
        curve.push((saved(&shares, dims), shares));
    }
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::LayerDims;

    fn dims(n_layer: usize) -> Dims {
        let layer = LayerDims::gated([9, 3, 64], 1536);
        Dims::alike(n_layer, 576, layer)
    }

    #[test]
    fn a_ratio_is_the_share_of_the_weights() {
        for n_layer in [1, 5, 30] {
            let d = dims(n_layer);
            for ratio in [0.05, 0.33, 0.8] {
                let shares = uniform(ratio, 0, &d);
                assert!((saved(&shares, &d) - ratio).abs() < 1e-9);
                // The last layer is dropped at once, and so is attention: a little more is saved.
                let more = saved(&depth(ratio, 0, &d), &d) - ratio;
                assert!((-1e-9..1.0 / n_layer as f64).contains(&more), "{n_layer} {ratio} {more}");
            }
        }
        // All but keys and values of the second half.
        assert!((saved(&uniform(0.9, 15, &dims(30)), &dims(30)) - 0.46875).abs() < 1e-9);
    }

    #[test]
    fn later_layers_lose_more() {
        let shares = depth(0.33, 3, &dims(30));
        assert_eq!(shares[..3], [[0.0; 2]; 3]);
        assert!(shares[3..].windows(2).all(|s| s[0][0] <= s[1][0] && s[0][1] <= s[1][1]));
        assert_eq!(shares[29], [1.0; 2]);
        assert!(shares.iter().all(|s| (s[0] == 0.0 || s[0] == 1.0) && s[0] <= s[1]));
    }

    #[test]
    fn files_are_read_and_interpolated() {
        let d = dims(2);
        let text =
            r#"{"pp-run prune plan": 1, "budgets": [{"layers": [[0, 0.5], [1, 1]]}, {"layers": [[0, 0], [0, 0.4]]}]}"#;
        let curve = parse(text, &d).unwrap();
        assert_eq!(curve[0].1, [[0.0, 0.0], [0.0, 0.4]]);
        let between = between(&curve, 0.3, &d).unwrap();
        assert!((saved(&between, &d) - 0.3).abs() < 1e-9);
        assert!(between[1][0] > 0.0 && between[1][0] < 1.0 && between[1][1] > 0.4);
        let half: Shares = super::between(&curve, curve[0].0 / 2.0, &d).unwrap();
        assert!((half[1][1] - 0.2).abs() < 1e-9 && half[0] == [0.0; 2]);
        for (bad, part) in [
            ("{}", "no plan"),
            (r#"{"pp-run prune plan": 2, "budgets": []}"#, "no plan"),
            (r#"{"pp-run prune plan": 1, "budgets": []}"#, "no plan"),
            (r#"{"pp-run prune plan": 1, "budgets": [{"layers": [[0, 1]]}]}"#, "1 layers, but the model has 2"),
            (r#"{"pp-run prune plan": 1, "budgets": [{"layers": [[0, 1], [0, 1.5]]}]}"#, "no plan"),
            (r#"{"pp-run prune plan": 1, "budgets": [{"layers": [[0, 1], [0]]}]}"#, "no plan"),
        ] {
            assert!(parse(bad, &d).unwrap_err().to_string().contains(part), "{bad}");
        }
    }
}
