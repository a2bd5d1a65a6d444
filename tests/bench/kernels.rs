//! Our product of a matrix with tokens beside ggml's own: operations a second, their ratio, and how much of the processor's limit is
//! reached: for many tokens that of the products of bytes alone, see [`Isa::peak`], and for one token the speed at which as many bytes are read.
//!
//! `cargo bench --bench kernels`, or with `-- --isa AVX2 --type Q4_0 --tokens 64` parts of it. With `-- --table src/weights/kernels.csv` it
//! measures every type that ggml has instead, or that of `--type`, and writes the table by which the program chooses kernels: its rows of the
//! instruction set that this build uses.
//!
//! Both are nodes of a graph that the same executor runs, and both begin with floats. Ours reads rows as a file has them, and packs
//! them anew each time; ggml's weights are in CPU_REPACK memory where it can multiply them from there. Of a matrix of which columns are
//! kept ours reads the whole (of a few tokens, what the program makes of it in advance), ggml's is one that has only those columns.
//! It is the best of several runs that counts, and a run of one is followed by one of the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use ggml::{
    Device, Division, Executor, Graph, Op, Part, Parts, Place, Schedule, Slot, Source, Specs, Store, TensorSpec, Type,
    Usage, dequantize_row,
};
use kernels::{Acts, ColumnLayout, Columns, Format, Isa, MAX_GEMV_TOKENS, Out, Packed, Row, aligned, token_bytes};

const SHAPES: [(usize, usize); 5] = [(576, 1536), (1536, 576), (4096, 4096), (4096, 11008), (11008, 4096)];
const TOKENS: [usize; 4] = [1, 8, 64, 512];
const THREADS: [usize; 2] = [1, 2];

#[derive(Parser)]
struct Args {
    /// Instruction set of ours
    #[arg(long)]
    isa: Option<String>,
    /// One type only
    #[arg(long = "type")]
    ty: Option<String>,
    /// One number of tokens only
    #[arg(long)]
    tokens: Option<usize>,
    /// Write the rows of this build's instruction set into this table
    #[arg(long)]
    table: Option<PathBuf>,
    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,
}

/// Random numbers, quickly.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    /// A matrix whose scales and minima are all of one size.
    fn matrix(&mut self, ty: Type, format: Format, n_in: usize, n_out: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..ty.row_bytes(n_in).expect("whole blocks") * n_out).map(|_| self.next() as u8).collect();
        for b in bytes.chunks_exact_mut(ty.block_bytes()) {
            match format {
                Format::Mxfp4 => b[0] = 120 + (b[0] & 1),
                // The upper bytes of 16-bit floats.
                Format::Q4_1 | Format::Q4K | Format::Q5_1 | Format::Q5K => {
                    [1, 3].iter().for_each(|&i| b[i] = 0x20 | b[i] & 1)
                }
                Format::Q2K => [81, 83].iter().for_each(|&i| b[i] = 0x20 | b[i] & 1),
                Format::Q3K => b[109] = 0x20 | b[109] & 1,
                Format::Q6K => b[209] = 0x20 | b[209] & 1,
                // The floats of types that our kernels do not know may be anywhere: no byte is the upper one of a large 16-bit float.
                Format::Other(_) => b.iter_mut().for_each(|b| *b &= 0x2f),
                _ => b[1] = 0x20 | b[1] & 1,
            }
        }
        bytes
    }
}

/// `x` F32 `[k, n]` -> I32 `[token_bytes(k) / 4, n]`
struct Quantize {
    isa: Isa,
    shares_scales: bool,
}

impl Op for Quantize {
    fn division(&self, ne: [usize; 4]) -> Division {
        Division { rows: self.isa.tile_tokens(), columns: ne[0] }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let tokens: Vec<&[f32]> = out.rows().map(|i| sources[0].row(i)).collect();
            self.isa.quantize(&tokens, self.shares_scales, out.bytes());
        }
    }
}

/// What [`Quantize`] makes, or for [`Weights::Columns`] the floats -> F32 `[n_out, n]`
struct Product {
    isa: Isa,
    weights: Weights,
}

enum Weights {
    /// Rows, of which all inputs or some are multiplied
    Rows { bytes: Arc<Vec<u8>>, format: Format<'static>, n_in: usize, n_out: usize, columns: Option<Columns> },
    /// What is made of some columns for few tokens
    Columns(ColumnLayout, Vec<u8>),
}

struct Tokens<'a, 'b>(&'a mut Part<'b>);

impl Out for Tokens<'_, '_> {
    fn token(&mut self, t: usize) -> &mut [f32] {
        self.0.row(t)
    }
}

impl Product {
    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        match &self.weights {
            Weights::Rows { bytes, n_out, .. } => bytes.len() / n_out,
            Weights::Columns(w, _) => w.row_bytes(),
        }
    }
}

impl Op for Product {
    fn division(&self, ne: [usize; 4]) -> Division {
        // As the program does: of many tokens some panels, of a few enough bytes.
        let share = match (&self.weights, ne[1]) {
            (Weights::Rows { n_in, .. }, n) if n > MAX_GEMV_TOKENS => self.isa.gemm_rows(*n_in, 1).min(ne[0] / 24),
            _ => ((2 << 20) / self.row_bytes()).min(ne[0].div_ceil(4)),
        };
        Division { rows: ne[1], columns: share.max(1).next_multiple_of(self.isa.panel_rows()) }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let (isa, n) = (self.isa, sources[0].ne()[1]);
        match &self.weights {
            Weights::Columns(w, tiles) => {
                let acts: Vec<_> = (0..n).map(|t| isa.column_acts(w, sources[0].row(t))).collect();
                while let Some(mut out) = parts.next() {
                    let first = out.columns().start;
                    acts.iter().enumerate().for_each(|(t, x)| isa.gemv_columns(w, tiles, x, first, out.row(t)));
                }
            }
            Weights::Rows { bytes, format, n_in, n_out, columns } => {
                let k = columns.as_ref().map_or(*n_in, Columns::len);
                let acts = Acts::new(sources[0].all_bytes(), k, isa.tile_tokens(), format.shares_scales());
                let gemv_acts = (n <= MAX_GEMV_TOKENS).then(|| isa.gemv_acts(acts, *format));
                let (row, tokens) = (bytes.len() / n_out, (0..n).collect::<Vec<_>>());
                let mut panel = Vec::new();
                while let Some(mut out) = parts.next() {
                    let range = out.columns();
                    let row = |i: usize| Row { bytes: &bytes[(range.start + i) * row..][..row], format: *format };
                    match &gemv_acts {
                        Some(acts) => isa.gemv(acts, &row, range.len(), &mut |i, x| {
                            x.iter().enumerate().for_each(|(t, x)| out.row::<f32>(t)[i] = *x);
                        }),
                        None => {
                            let (n, columns, mut out) = (range.len(), columns.as_ref(), Tokens(&mut out));
                            let panels = aligned(&mut panel, n.div_ceil(isa.panel_rows()) * isa.panel_bytes(acts.k()));
                            isa.pack(&row, n, *n_in, columns, panels);
                            let panels = Packed { bytes: panels, format: *format, is_kept: columns.is_some() };
                            isa.gemm(panels, n, acts, &tokens, &mut out);
                        }
                    }
                }
            }
        }
    }
}

/// A graph that is ready to run.
struct Runner {
    executor: Executor,
    schedule: Schedule,
    out: Slot,
}

impl Runner {
    fn new(graph: Graph, x: Slot, out: Slot, data: &[f32]) -> Runner {
        let executor = Executor::new(&[], Arc::default()).expect("threads");
        let mut schedule = executor.schedule();
        schedule.load(graph).expect("memory");
        schedule.set(x, data);
        Runner { executor, schedule, out }
    }

    fn ours(isa: Isa, weights: Weights, k: usize, n_out: usize, x: &[f32]) -> Runner {
        let n = x.len() / k;
        let (graph, (input, out)) = Graph::build(16, |g| {
            let (x, input) = g.input("x", Type::F32, [k, n, 1, 1]);
            let acts = match weights {
                Weights::Rows { format, .. } => {
                    let op = Quantize { isa, shares_scales: format.shares_scales() };
                    g.custom(Type::I32, [token_bytes(k) / 4, n, 1, 1], &[x], op)
                }
                Weights::Columns(..) => x,
            };
            let y = g.custom(Type::F32, [n_out, n, 1, 1], &[acts], Product { isa, weights });
            (input, g.output(y))
        });
        Runner::new(graph, input, out, x)
    }

    /// And the name of the memory: where ggml rearranges weights for its kernels, or that of weights as they are in a file.
    fn ggml(ty: Type, bytes: &[u8], k: usize, n_out: usize, x: &[f32], rearranged: bool) -> (Runner, String) {
        let (cpu, ne) = (Device::cpu(), [k as u64, n_out as u64]);
        let mut kinds = if rearranged { cpu.extra_buffer_types() } else { Vec::new() };
        kinds.push(cpu.buffer_type());
        let memory =
            kinds.into_iter().find(|&m| cpu.supports(m, ty, [ne[0], ne[1], 1], Usage::MulMat)).expect("some memory");
        let spec = TensorSpec { name: "w".into(), ty, ne: [ne[0], ne[1], 1, 1], place: Place::Buffer(memory) };
        let mut specs = Specs::new();
        let id = specs.push(spec);
        let mut store = Store::new(specs, Vec::new()).expect("memory");
        store.set_weights();
        store.fill(&[(id, bytes)], 2, &mut |_| std::ops::ControlFlow::Continue(()));
        let store = Rc::new(store);
        let (graph, (input, out)) = Graph::build(16, |g| {
            let (x, input) = g.input("x", Type::F32, [k, x.len() / k, 1, 1]);
            (input, g.output(g.mul_mat(g.leaf(&store, id), x)))
        });
        (Runner::new(graph, input, out, x), memory.name())
    }

    fn result(&mut self, n: usize) -> Vec<f32> {
        self.executor.compute(&mut self.schedule, 1).expect("a result");
        let mut out = vec![0.0; n];
        self.schedule.get(self.out, &mut out);
        out
    }

    /// The shortest of some runs.
    fn time(&mut self, n_threads: usize) -> Duration {
        // Threads wake up and caches fill.
        self.executor.compute(&mut self.schedule, n_threads).expect("a result");
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

/// `k` of `n`, evenly spread.
fn spread(k: usize, n: usize) -> Vec<i32> {
    (0..n).filter(|i| (i + 1) * k / n > i * k / n).map(|i| i as i32).collect()
}

/// Operations a second of so many threads at best, with rows of this format or kept columns of them.
fn peak(isa: Isa, format: Format, is_kept: bool, n_threads: usize) -> f64 {
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..n_threads).map(|_| s.spawn(|| isa.peak(format, is_kept))).collect();
        threads.into_iter().map(|t| t.join().expect("a measurement")).sum()
    })
}

/// Bytes a second that so many threads read of memory of this size, at best.
fn bandwidth(bytes: &[u8], n_threads: usize) -> f64 {
    let read =
        |bytes: &[u8]| bytes.chunks_exact(8).fold(0, |a, b| a ^ u64::from_le_bytes(b.try_into().expect("8 bytes")));
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let start = Instant::now();
        std::thread::scope(|s| {
            for bytes in bytes.chunks(bytes.len().div_ceil(n_threads)) {
                s.spawn(move || std::hint::black_box(read(bytes)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    bytes.len() as f64 / best
}

/// The types that our kernels read, and their names in ggml.
fn types() -> Vec<(Type, Format<'static>)> {
    let all: Vec<Type> = (0..u32::from(u8::MAX)).filter_map(Type::from_id).collect();
    let ty = |f: &Format| *all.iter().find(|ty| ty.name() == f.name()).expect("a type of ggml's");
    Format::ALL.iter().map(|f| (ty(f), *f)).collect()
}

/// Bytes of a matrix that is multiplied with one token for the table: like a model, more than processors remember.
const LARGE: usize = 400 << 20;

/// The table's first line.
const HEAD: &str = "# instruction set, type, and billions of operations a second: ours of 512 tokens, of 1; ggml's of 512, of 1, of 1 as in the file";

/// Writes the rows of the best instruction set into the table: of every quantised type that ggml multiplies, or of `only` one, in billions of
/// operations a second of all cores, ours of 512 tokens and of one, ggml's of 512, of one, and of one with weights as they are in a file.
fn write_table(path: &Path, only: Option<&str>) {
    let isa = Isa::best();
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let old = fs::read_to_string(path).unwrap_or_default();
    let replaced = [only.map_or(format!("{isa},"), |ty| format!("{isa},{ty},")), format!("# {isa}:"), HEAD.to_owned()];
    let is_other = |l: &&str| !replaced.iter().any(|of| l.starts_with(of));
    let mut rows: Vec<String> = old.lines().filter(is_other).map(str::to_owned).collect();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpus
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or(": unknown")
        .trim_start_matches([' ', '\t', ':']);
    rows.push(format!("# {isa}: {n_threads} cores of {name}"));
    let mut random = Random(1);
    let n_in = 4096;
    let types = (0..u32::from(u8::MAX)).filter_map(Type::from_id);
    let is_wanted = |ty: &Type| only.is_none_or(|only| ty.name() == only);
    for ty in types.filter(|ty| ty.is_quantized() && ty.multiplies(Type::F32) && is_wanted(ty)) {
        // The program is at its end before this is needed no more.
        let decode = Box::leak(Box::new(move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out)));
        let format = Format::from_name(&ty.name()).unwrap_or(Format::Other(decode));
        let small = random.matrix(ty, format, n_in, n_in);
        let large = small.repeat(LARGE / small.len());
        let mut speeds = Vec::new();
        for (bytes, n) in [(Arc::new(small), 512), (Arc::new(large), 1)] {
            let n_out = bytes.len() / ty.row_bytes(n_in).expect("whole blocks");
            let x: Vec<f32> = (0..n_in * n).map(|_| random.next() as f32 / (1 << 23) as f32 - 1.0).collect();
            let ours = (n > 1 || format.has_gemv()).then(|| {
                let weights = Weights::Rows { bytes: bytes.clone(), format, n_in, n_out, columns: None };
                Runner::ours(isa, weights, n_in, n_out, &x)
            });
            let ggml = [true, false].map(|rearranged| Runner::ggml(ty, &bytes, n_in, n_out, &x, rearranged).0);
            let mut runners: Vec<Option<Runner>> = std::iter::once(ours).chain(ggml.map(Some)).collect();
            let mut best = [Duration::MAX; 3];
            for _ in 0..3 {
                for (best, runner) in best.iter_mut().zip(&mut runners) {
                    *best = runner.as_mut().map_or(*best, |r| r.time(n_threads).min(*best));
                }
            }
            speeds.push(best.map(|t| (2 * n_in * n_out * n) as f64 / t.as_secs_f64() / 1e9));
        }
        let [many, one] = [speeds[0], speeds[1]];
        let own_one = if format.has_gemv() { format!("{:.1}", one[0]) } else { String::new() };
        // For prompts ggml has the better of its two.
        let row =
            format!("{isa},{ty},{:.1},{own_one},{:.1},{:.1},{:.1}", many[0], many[1].max(many[2]), one[1], one[2]);
        println!("{row}");
        rows.push(row);
    }
    rows.sort();
    fs::write(path, format!("{HEAD}\n{}\n", rows.join("\n"))).expect("the table is written");
}

fn main() {
    let args = Args::parse();
    if let Some(path) = &args.table {
        return write_table(path, args.ty.as_deref());
    }
    let isa = match &args.isa {
        None => Isa::best(),
        Some(name) => Isa::all().into_iter().find(|isa| isa.to_string() == *name).unwrap_or_else(|| {
            panic!("this processor has {:?}", Isa::all().iter().map(Isa::to_string).collect::<Vec<_>>())
        }),
    };
    println!("{isa}");
    println!("                                         GOP/s of one thread          of two");
    println!("   in x out   type   columns tokens    ours limit  ggml ratio    ours limit  ggml ratio");
    let mut random = Random(1);
    for (n_in, n_out) in SHAPES {
        for (ty, format) in types() {
            if !n_in.is_multiple_of(ty.block_size()) || args.ty.as_ref().is_some_and(|t| *t != ty.name()) {
                continue;
            }
            let bytes = Arc::new(random.matrix(ty, format, n_in, n_out));
            let bandwidths = THREADS.map(|n| bandwidth(&bytes, n));
            for keep in [false, true] {
                let peaks = THREADS.map(|n| peak(isa, format, keep, n));
                let k = if keep { n_in * 5 / 8 / ty.block_size() * ty.block_size() } else { n_in };
                let columns = || Columns::new(&spread(k, n_in), 1, n_in);
                let theirs = if keep { Arc::new(random.matrix(ty, format, k, n_out)) } else { bytes.clone() };
                // Few tokens of types that are not read where they are is what ggml multiplies in the program, too.
                let is_ours = |n: usize| keep || n > MAX_GEMV_TOKENS || format.has_gemv();
                for n in TOKENS.into_iter().filter(|&n| args.tokens.is_none_or(|t| t == n) && is_ours(n)) {
                    let x: Vec<f32> = (0..k * n).map(|_| random.next() as f32 / (1 << 23) as f32 - 1.0).collect();
                    let weights = if keep && n <= MAX_GEMV_TOKENS {
                        let row = |i: usize| Row {
                            bytes: &bytes[i * bytes.len() / n_out..(i + 1) * bytes.len() / n_out],
                            format,
                        };
                        let w = isa.column_layout(format, n_out, &columns());
                        let mut tiles = vec![0; w.n_bytes()];
                        isa.reduce_columns(&w, &row, n_in, &mut tiles);
                        Weights::Columns(w, tiles)
                    } else {
                        Weights::Rows { bytes: bytes.clone(), format, n_in, n_out, columns: keep.then(columns) }
                    };
                    let mut ours = Runner::ours(isa, weights, k, n_out, &x);
                    let (mut ggml, memory) = Runner::ggml(ty, &theirs, k, n_out, &x, true);
                    if !keep {
                        let (a, b) = (ours.result(n_out * n), ggml.result(n_out * n));
                        let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>();
                        let error = square(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / square(&mut b.iter().copied());
                        assert!(error.sqrt() < 0.02, "both compute the same: {error}");
                    }
                    print!("{n_in:>5} x {n_out:<5} {:<6} {:<7} {n:>5}", ty.name(), if keep { "5/8" } else { "all" });
                    for ((n_threads, peak), bandwidth) in THREADS.into_iter().zip(peaks).zip(bandwidths) {
                        let mut best = [Duration::MAX; 2];
                        for _ in 0..3 {
                            best[0] = best[0].min(ours.time(n_threads));
                            best[1] = best[1].min(ggml.time(n_threads));
                        }
                        let [a, b] = best.map(|t| (2 * k * n_out * n) as f64 / t.as_secs_f64());
                        let limit = match n {
                            1 => bandwidth * (2 * k * n_out) as f64 / theirs.len() as f64,
                            _ => peak,
                        };
                        print!("  {:>6.1} {:>4.0}% {:>5.1} {:>5.2}", a / 1e9, a / limit * 100.0, b / 1e9, a / b);
                    }
                    println!("  {memory}");
                }
            }
        }
    }
}
