//! Our attention beside ggml's flash attention: operations a second and their ratio.
//!
//! `cargo bench --bench attention`, or with `-- --head 128 --cache q8_0 --tokens 1 --depth 8192` parts of it.
//!
//! Both are nodes of a graph that the same executor runs, over the same cache: as many tokens as are named, after a context. It is the
//! best of several runs that counts, and a run of one is followed by one of the other.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use ggml::{Device, Executor, F16, Graph, Place, Schedule, Slot, Specs, Store, TensorId, TensorSpec, Type, quantize};
use kernels::{Isa, Scores};
use pp_run::graph::attend;

const HEADS: [usize; 5] = [64, 80, 96, 128, 256];
const CACHES: [Type; 2] = [Type::F16, Type::Q8_0];
const TOKENS: [usize; 2] = [1, 512];
const DEPTHS: [usize; 3] = [512, 8192, 32768];
const THREADS: [usize; 2] = [1, 2];

#[derive(Parser)]
struct Args {
    /// One width of heads only
    #[arg(long)]
    head: Option<usize>,
    /// One type of cache only
    #[arg(long)]
    cache: Option<String>,
    /// One number of tokens only
    #[arg(long)]
    tokens: Option<usize>,
    /// One depth only: tokens in the cache before
    #[arg(long)]
    depth: Option<usize>,
    /// Heads of queries
    #[arg(long, default_value_t = 8)]
    n_head: usize,
    /// Heads of keys and values
    #[arg(long, default_value_t = 2)]
    n_head_kv: usize,
    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,
}

/// Numbers between -1 and 1.
struct Random(u32);

impl Random {
    fn floats(&mut self, n: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }
}

/// Keys and values, head by head as in the program.
struct Cache {
    store: Rc<Store>,
    k: TensorId,
    v: TensorId,
    /// `[d, n_cells, n_head_kv]`
    ne: [usize; 3],
}

impl Cache {
    fn new(random: &mut Random, ty: Type, ne: [usize; 3]) -> Cache {
        let [d, n_cells, n_head_kv] = ne;
        let spec = |name: &str| {
            let ne = [d as u64, n_cells as u64, n_head_kv as u64, 1];
            TensorSpec { name: name.into(), ty, ne, place: Place::Buffer(Device::cpu().buffer_type()) }
        };
        let mut specs = Specs::new();
        let (k, v) = (specs.push(spec("k")), specs.push(spec("v")));
        let mut store = Store::new(specs, Vec::new()).expect("memory");
        let [keys, values] = [0, 1].map(|_| quantize(ty, &random.floats(d * n_head_kv * n_cells), d));
        store.fill(&[(k, &keys), (v, &values)], 2, &mut |_| std::ops::ControlFlow::Continue(()));
        Cache { store: Rc::new(store), k, v, ne }
    }
}

/// A graph that is ready to run.
struct Runner {
    executor: Executor,
    schedule: Schedule,
    out: Slot,
}

impl Runner {
    fn new(graph: Graph, out: Slot, set: impl FnOnce(&mut Schedule)) -> Runner {
        let executor = Executor::new(&[], Arc::default()).expect("threads");
        let mut schedule = executor.schedule();
        schedule.load(graph).expect("memory");
        set(&mut schedule);
        Runner { executor, schedule, out }
    }

    fn ours(cache: &Cache, q: &[f32], n_head: usize, depth: usize) -> Runner {
        let [d, n_cells, n_head_kv] = cache.ne;
        let n = n_cells - depth;
        let (graph, (q_slot, sights, out)) = Graph::build(16, |g| {
            let (q, q_slot) = g.input("q", Type::F32, [d, n_head, n, 1]);
            let (sights, slot) = g.input("sights", Type::I32, [3, n, 1, 1]);
            let [k, v] = [cache.k, cache.v].map(|id| g.permute(g.leaf(&cache.store, id), [0, 2, 1, 3]));
            let scores = Scores { scale: 1.0 / (d as f32).sqrt(), softcap: None };
            let out = attend(g, &[q, k, v, sights], scores, n_head / n_head_kv, false);
            (q_slot, slot, g.output(out))
        });
        let cells: Vec<i32> = (0..n).flat_map(|i| [0, 0, (depth + i + 1) as i32]).collect();
        Runner::new(graph, out, |schedule| {
            schedule.set(q_slot, q);
            schedule.set(sights, &cells);
        })
    }

    fn ggml(cache: &Cache, q: &[f32], n_head: usize, depth: usize) -> Runner {
        let [d, n_cells, _] = cache.ne;
        let n = n_cells - depth;
        let (graph, (q_slot, mask, out)) = Graph::build(16, |g| {
            let (q, q_slot) = g.input("q", Type::F32, [d, n_head, n, 1]);
            let (mask, slot) = g.input("mask", Type::F16, [n_cells, n, 1, 1]);
            let (k, v) = (g.leaf(&cache.store, cache.k), g.leaf(&cache.store, cache.v));
            let out = g.flash_attn(g.permute(q, [0, 2, 1, 3]), k, v, mask, 1.0 / (d as f32).sqrt(), 0.0);
            (q_slot, slot, g.output(out))
        });
        let hidden = |i: usize| (0..n_cells).map(move |c| F16(if c > depth + i { 0xfc00 } else { 0 }));
        let cells: Vec<F16> = (0..n).flat_map(hidden).collect();
        Runner::new(graph, out, |schedule| {
            schedule.set(q_slot, q);
            schedule.set(mask, &cells);
        })
    }

    fn result(&mut self, n: usize) -> Vec<f32> {
        self.executor.compute(&mut self.schedule, 2).expect("a result");
        let mut out = vec![0.0; n];
        self.schedule.get(self.out, &mut out);
        self.executor.pause();
        out
    }

    /// The shortest of some runs.
    fn time(&mut self, n_threads: usize) -> Duration {
        let (start, mut best) = (Instant::now(), Duration::MAX);
        while start.elapsed() < Duration::from_millis(20) {
            let start = Instant::now();
            self.executor.compute(&mut self.schedule, n_threads).expect("a result");
            best = best.min(start.elapsed());
        }
        // So that they do not take the core from the other's.
        self.executor.pause();
        best
    }
}

fn main() {
    let args = Args::parse();
    let (n_head, n_head_kv) = (args.n_head, args.n_head_kv);
    println!("{}, {n_head} heads of queries on {n_head_kv} of keys and values", Isa::best());
    println!("                             GFLOP/s of one thread     of two");
    println!("head cache tokens  depth     ours   ggml  ratio      ours   ggml  ratio");
    let mut random = Random(1);
    for d in HEADS.into_iter().filter(|d| args.head.is_none_or(|h| h == *d)) {
        for ty in CACHES.into_iter().filter(|t| args.cache.as_ref().is_none_or(|c| t.name().eq_ignore_ascii_case(c))) {
            if !d.is_multiple_of(ty.block_size()) {
                continue;
            }
            for depth in DEPTHS.into_iter().filter(|n| args.depth.is_none_or(|t| t == *n)) {
                for n in TOKENS.into_iter().filter(|n| args.tokens.is_none_or(|t| t == *n)) {
                    let cache = Cache::new(&mut random, ty, [d, depth + n, n_head_kv]);
                    // Scores are as far apart as a model's: not all cells count alike.
                    let q: Vec<f32> = random.floats(d * n_head * n).into_iter().map(|x| 4.0 * x).collect();
                    let mut ours = Runner::ours(&cache, &q, n_head, depth);
                    let mut ggml = Runner::ggml(&cache, &q, n_head, depth);
                    let (a, b) = (ours.result(q.len()), ggml.result(q.len()));
                    let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>();
                    let error = square(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / square(&mut b.iter().copied());
                    // ggml adds values up in 16 bits.
                    assert!(error < 1e-2, "both compute the same: {error}");
                    print!("{d:>4} {:<5} {n:>6} {depth:>6}", ty.name());
                    for n_threads in THREADS {
                        let mut best = [Duration::MAX; 2];
                        for _ in 0..3 {
                            best[0] = best[0].min(ours.time(n_threads));
                            best[1] = best[1].min(ggml.time(n_threads));
                        }
                        // Each query's products with the keys that it sees, and their weights' with the values.
                        let cells: usize = (0..n).map(|i| depth + i + 1).sum();
                        let [a, b] = best.map(|t| (4 * d * n_head * cells) as f64 / t.as_secs_f64() / 1e9);
                        print!("   {a:>7.1} {b:>6.1} {:>6.2}", a / b);
                    }
                    println!();
                }
            }
        }
    }
}
