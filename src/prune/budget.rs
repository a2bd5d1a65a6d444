//! Budgets: which share of each block is left out, so that a given share of the weights is saved over the model.

use serde_json::Value;

use super::block::BlockKind;
use crate::error::{Error, Result};
use crate::weights::Dims;

/// Shares to leave out of the attention and of the MLP of each layer, 0 to 1; at 1 a block is dropped.
pub type Shares = Vec<[f64; 2]>;

/// Budgets that were solved for several ratios, by rising ratio.
pub type Curve = Vec<(f64, Shares)>;

/// Share of the weights of all blocks that is saved; keys and values are made of all heads.
pub fn saved(shares: &[[f64; 2]], dims: &Dims) -> f64 {
    let [attn, mlp] = [BlockKind::Attn, BlockKind::Mlp].map(|kind| {
        let units = kind.units(dims);
        let [none, all] = [0, units].map(|n| kind.weights(dims, n, true) as f64);
        (all - none, all)
    });
    let saved: f64 = shares.iter().map(|s| s[0] * attn.0 + s[1] * mlp.0).sum();
    saved / (dims.n_layer as f64 * (attn.1 + mlp.1))
}

/// The shares that `shares_at` has for the strength at which `ratio` of the weights is saved. It rises with the strength, 0 to 1.
fn solve(ratio: f64, dims: &Dims, shares_at: impl Fn(f64) -> Shares) -> Shares {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if saved(&shares_at(middle), dims) < ratio { low = middle } else { high = middle }
    }
    shares_at(high)
}

/// The same share of each block, but for the first `skip` layers.
pub fn uniform(ratio: f64, skip: usize, dims: &Dims) -> Shares {
    solve(ratio, dims, |x| (0..dims.n_layer).map(|il| if il < skip { [0.0; 2] } else { [x; 2] }).collect())
}

/// More with depth.
pub fn depth(ratio: f64, skip: usize, dims: &Dims) -> Shares {
    uniform(ratio, skip, dims)
}

/// Shares for a ratio, between those of the curve's next points.
pub fn between(curve: &Curve, ratio: f64, dims: &Dims) -> Shares {
    let none = vec![[0.0; 2]; dims.n_layer];
    let above = curve.iter().position(|p| p.0 >= ratio).unwrap_or(curve.len() - 1);
    let high = &curve[above].1;
    let low = if above == 0 { &none } else { &curve[above - 1].1 };
    let mix = |x: f64| {
        let mix = |(a, b): (&[f64; 2], &[f64; 2])| [0, 1].map(|i| a[i] + x * (b[i] - a[i]));
        low.iter().zip(high).map(mix).collect()
    };
    solve(ratio, dims, mix)
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
        if layers.len() != dims.n_layer {
            return Err(Error::malformed(format!(
                "has budgets for {} layers, but the model has {}",
                layers.len(),
                dims.n_layer
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
