//! What pruned reading costs, as it was measured on a model, and budgets that are solved from it.

use serde_json::{Value, json};

use super::block::{Block, BlockKind};
use super::budget::{MOST, Shares, saved, solve};
use crate::weights::{Dims, LayerDims};

/// What reading saves and costs with a share of the weights left out, by the budget of [`cheapest`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Share of the blocks' weights that is left out
    pub ratio: f64,
    /// Time of reading, as a multiple of that of dense reading
    pub time: f64,
    /// Mean KL divergence of what follows from what follows a dense reading, in nats per token
    pub kl: f64,
    /// Perplexity of what follows, as a multiple of that after a dense reading
    pub perplexity: f64,
}

/// Less is not worth it.
const LEAST_RATIO: f64 = 0.05;

/// A curve's points with one in front at which nothing is left out and nothing lost, each no cheaper than the one before: `(ratio, kl)`.
fn rising(curve: &[Measured]) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = vec![(0.0, 0.0)];
    for p in curve {
        let before = points[points.len() - 1];
        points.push((p.ratio, before.1.max(p.kl)));
    }
    points
}

/// The divergence to be expected at a ratio: between measured points, a line.
pub fn expected(curve: &[Measured], ratio: f64) -> f64 {
    let points = rising(curve);
    match points.windows(2).find(|w| w[1].0 >= ratio) {
        Some(w) => w[0].1 + (ratio - w[0].0) / (w[1].0 - w[0].0) * (w[1].1 - w[0].1),
        None => points[points.len() - 1].1,
    }
}

/// The largest ratio whose expected divergence is no more than `kl`; 0 if none is that is worth it.
pub fn largest(curve: &[Measured], kl: f64) -> f64 {
    let points = rising(curve);
    let ratio = match points.windows(2).find(|w| w[1].1 > kl) {
        Some(w) => w[0].0 + (kl - w[0].1).max(0.0) / (w[1].1 - w[0].1) * (w[1].0 - w[0].0),
        None => points[points.len() - 1].0,
    };
    if ratio < LEAST_RATIO { 0.0 } else { ratio }
}

/// Share of an MLP's channels at which its cost is measured.
const MLP_SHARE: f64 = 0.75;

/// So small a share costs next to nothing. What is measured all the same is that sums are rounded otherwise.
const ROUNDING_SHARE: f64 = 0.05;

/// What one layer's blocks cost what follows when they alone are pruned: KL divergences, less what comes of rounding. In each, tokens that
/// repeat a part of what was read have a share: `commands::calibrate` says how much.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LayerCosts {
    /// Attention is dropped
    pub attn: f64,
    /// Three quarters of the MLP's channels are left out
    pub mlp: f64,
}

/// No block costs less than this, as far as can be measured.
const LEAST: f64 = 2e-5;

/// Tokens of context at which attention's own multiplications are counted: those of a prompt twice as long, on average.
const N_CONTEXT: usize = 512;

/// What probing an MLP and gathering its kept weights takes, as a share of the MLP.
const OVERHEAD: f64 = 0.15;

/// The budget that leaves out `ratio` of the blocks' weights at the least cost for the time that it saves, if costs add up: each block is
/// pruned until a little more of any would cost the same for what it saves. `costs` are of all layers but the last. The last one that makes
/// keys and values is dropped, and so is what comes after it: they serve nothing that is read.
///
/// An MLP costs as the square of its share. Time goes with multiplications: those of attention count, too, and an MLP that is pruned at all
/// has a probe to pay for.
pub fn cheapest(costs: &[LayerCosts], ratio: f64, dims: &Dims) -> Shares {
    // What each layer's blocks save.
    let saves = |il: usize| {
        let [attn, mlp] = [BlockKind::Attn, BlockKind::Mlp].map(|kind| {
            let block = Block { il, kind };
            block.weights(dims, block.units(dims), true) - block.weights(dims, 0, true)
        });
        let &LayerDims { n_head, n_embd_head, .. } = &dims.layers[il];
        [(attn + 2 * N_CONTEXT * n_head * n_embd_head) as f64, mlp as f64]
    };
    let layers: Vec<(&LayerCosts, [f64; 2])> = costs.iter().enumerate().map(|(il, c)| (c, saves(il))).collect();
    let largest = (0..dims.n_layer()).flat_map(saves).fold(1.0, f64::max);
    // Prices of a multiplication, over twelve orders of magnitude.
    let price = |x: f64| 1e-9 / largest * 10f64.powf(12.0 * x);
    let factor = |c: &LayerCosts| c.mlp.max(LEAST) / MLP_SHARE.powi(2);
    let share_at = |c: &LayerCosts, mlp: f64, price: f64| (price * mlp / (2.0 * factor(c))).min(MOST);
    // Which blocks are worth it.
    let worth = |price: f64| -> Vec<[bool; 2]> {
        let of_layer = |&(c, [attn, mlp]): &(&LayerCosts, [f64; 2])| {
            let share = share_at(c, mlp, price);
            [c.attn.max(LEAST) < price * attn, factor(c) * share.powi(2) < price * mlp * (share - OVERHEAD)]
        };
        layers.iter().map(of_layer).collect()
    };
    let shares = |worth: &[[bool; 2]], price: f64| -> Shares {
        let of_layer = |il: usize| match layers.get(il).zip(worth.get(il)) {
            Some((&(c, [_, mlp]), worth)) if il + 1 < dims.n_read() => {
                [if worth[0] { 1.0 } else { 0.0 }, if worth[1] { share_at(c, mlp, price) } else { 0.0 }]
            }
            _ => [1.0; 2],
        };
        (0..dims.n_layer()).map(of_layer).collect()
    };
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        let is_enough = saved(&shares(&worth(price(middle)), price(middle)), dims) >= ratio;
        if is_enough { high = middle } else { low = middle }
    }
    // A block more may be a step too far: with these blocks, but no more of each than it takes.
    let mut worth = worth(price(high));
    // Where there is nothing but attention, which is dropped or whole, of blocks that cost alike no more than it takes.
    for il in (0..worth.len()).filter(|&il| dims.layers[il].n_ff == 0) {
        let is_worth = std::mem::replace(&mut worth[il][0], false);
        worth[il][0] = is_worth && saved(&shares(&worth, price(high)), dims) < ratio;
    }
    solve(ratio, dims, |x| shares(&worth, price(x)))
}

/// What was measured on a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Costs {
    /// Of all layers but the last
    pub layers: Vec<LayerCosts>,
    /// By rising ratio
    pub curve: Vec<Measured>,
}

impl Costs {
    /// As it is written into files.
    pub fn to_json(&self) -> Value {
        let layer = |c: &LayerCosts| json!([c.attn, c.mlp]);
        json!({
            "layers": self.layers.iter().map(layer).collect::<Value>(),
            "curve": Costs::curve_to_json(&self.curve),
        })
    }

    /// A curve as it is written into files.
    pub fn curve_to_json(curve: &[Measured]) -> Value {
        let point = |p: &Measured| json!({ "ratio": p.ratio, "time": p.time, "kl": p.kl, "perplexity": p.perplexity });
        curve.iter().map(point).collect()
    }

    /// What [`Costs::to_json`] wrote, of a model of `n_layer` layers; `None` if it is not that.
    pub fn from_json(value: &Value, n_layer: usize) -> Option<Costs> {
        let layer = |v: &Value| Some(LayerCosts { attn: number(&v[0])?, mlp: number(&v[1])? });
        let layers = value["layers"].as_array()?.iter().map(layer).collect::<Option<Vec<LayerCosts>>>()?;
        let curve = Costs::curve_from_json(&value["curve"])?;
        (layers.len() + 1 == n_layer).then_some(Costs { layers, curve })
    }

    /// What [`Costs::curve_to_json`] wrote; `None` if it is not that.
    pub fn curve_from_json(value: &Value) -> Option<Vec<Measured>> {
        let positive = |v: &Value| number(v).filter(|x| *x > 0.0);
        let point = |v: &Value| {
            let ratio = positive(&v["ratio"]).filter(|x| *x <= 1.0)?;
            let [time, perplexity] = [positive(&v["time"])?, positive(&v["perplexity"])?];
            Some(Measured { ratio, time, kl: number(&v["kl"])?, perplexity })
        };
        let curve = value.as_array()?.iter().map(point).collect::<Option<Vec<Measured>>>()?;
        curve.is_sorted_by(|a, b| a.ratio < b.ratio).then_some(curve)
    }
}

fn number(v: &Value) -> Option<f64> {
    v.as_f64().filter(|x| x.is_finite())
}

/// The block and the share of each measurement that [`LayerCosts`] needs, layer by layer: rounding, the attention, the MLP.
pub fn measurements(dims: &Dims) -> impl Iterator<Item = (Block, f64)> + use<> {
    (0..dims.n_layer() - 1).flat_map(|il| {
        let [attn, mlp] = [BlockKind::Attn, BlockKind::Mlp].map(|kind| Block { il, kind });
        [(mlp, ROUNDING_SHARE), (attn, 1.0), (mlp, MLP_SHARE)]
    })
}

impl LayerCosts {
    /// Of what came of the measurements, by layer.
    pub fn of(measured: &[f64]) -> Vec<LayerCosts> {
        measured.chunks_exact(3).map(|kl| LayerCosts { attn: kl[1] - kl[0], mlp: kl[2] - kl[0] }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims() -> Dims {
        let layer = LayerDims::gated([4, 2, 16], 192);
        Dims::alike(4, 64, layer)
    }

    fn point(ratio: f64, kl: f64) -> Measured {
        Measured { ratio, time: 1.0 - ratio, kl, perplexity: 1.0 }
    }

    #[test]
    fn a_curve_is_read_both_ways() {
        // A point that came out cheaper than the one before it by chance is taken to cost as much.
        let curve = [point(0.1, 0.004), point(0.2, 0.003), point(0.4, 0.02)];
        assert_eq!(largest(&curve, 0.002), 0.05);
        assert_eq!(largest(&curve, 0.0019), 0.0);
        assert_eq!(largest(&curve, 0.004), 0.2);
        assert!((largest(&curve, 0.012) - 0.3).abs() < 1e-12);
        assert_eq!(largest(&curve, 1.0), 0.4);
        assert_eq!(largest(&[], 0.01), 0.0);
        assert_eq!(expected(&curve, 0.05), 0.002);
        assert!((expected(&curve, 0.3) - 0.012).abs() < 1e-12);
        assert_eq!(expected(&curve, 0.5), 0.02);
    }

    #[test]
    fn what_costs_least_is_left_out_first() {
        let costs = [
            LayerCosts { attn: 0.5, mlp: 0.4 },
            LayerCosts { attn: 0.0001, mlp: 0.04 },
            LayerCosts { attn: 0.05, mlp: 0.004 },
        ];
        for ratio in [0.3, 0.45, 0.6] {
            let shares = cheapest(&costs, ratio, &dims());
            let is = saved(&shares, &dims());
            assert!(is >= ratio && is < ratio + 0.02, "{ratio}: {is}");
            assert_eq!(shares[3], [1.0, 1.0]);
            assert!(shares[0][1] <= shares[1][1] && shares[1][1] <= shares[2][1], "{shares:?}");
            assert_eq!((shares[0][0], shares[1][0]), (0.0, 1.0), "{shares:?}");
        }
    }

    #[test]
    fn of_experts_the_cheapest_attention_is_dropped_first() {
        let layer = LayerDims { n_expert_weights: 2 * 3 * 64 * 96, ..LayerDims::gated([4, 2, 16], 0) };
        let d = Dims::alike(5, 64, layer);
        let costs = [0.5, 0.01, 0.0001, 0.02].map(|attn| LayerCosts { attn, mlp: 0.0 });
        // Four blocks that cost something, and the last one, of which each is some 4% of the weights.
        for (ratio, dropped) in [
            (0.03, [false, false, false, false]),
            (0.06, [false, false, true, false]),
            (0.1, [false, true, true, false]),
        ] {
            let shares = cheapest(&costs, ratio, &d);
            assert_eq!([0, 1, 2, 3].map(|il| shares[il][0] == 1.0), dropped, "{ratio}: {}", saved(&shares, &d));
        }
    }

    #[test]
    fn costs_of_nothing_and_of_noise_are_no_trouble() {
        for cost in [0.0, -1e-9, 1e-12] {
            let costs = [LayerCosts { attn: cost, mlp: cost }; 3];
            let shares = cheapest(&costs, 0.5, &dims());
            assert!(saved(&shares, &dims()) >= 0.5 && shares.iter().flatten().all(|x| (0.0..=1.0).contains(x)));
        }
    }

    #[test]
    fn costs_are_read_as_they_were_written() {
        let layers = vec![LayerCosts { attn: 0.01, mlp: -1e-9 }; 3];
        let costs = Costs { layers, curve: vec![point(0.3, 0.1), point(0.5, 0.2)] };
        let json = costs.to_json();
        assert_eq!(Costs::from_json(&json, 4), Some(costs));
        assert_eq!(Costs::from_json(&json, 5), None);
        for (pointer, wrong) in
            [("/layers/0/1", json!("0")), ("/curve/1/ratio", json!(0.2)), ("/curve/0/time", json!(0))]
        {
            let mut damaged = json.clone();
            *damaged.pointer_mut(pointer).unwrap() = wrong;
            assert_eq!(Costs::from_json(&damaged, 4), None, "{pointer}");
        }
    }
}
