//! What several tests need.
#![allow(dead_code, reason = "each test uses a part")]

pub mod forge;
pub mod script;
#[cfg(unix)]
pub mod term;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pp_run::engine::Options as ContextOptions;
use pp_run::engine::Session;
use pp_run::gguf::Gguf;
use pp_run::model::{Model, Options as ModelOptions, RopeOptions};
use pp_run::tokenizer::{Token, Tokenizer};
use pp_run::weights::{self, GpuOptions, Kernels};

/// SmolLM2-135M-Instruct, which `models/get` fetches.
pub fn smollm2() -> PathBuf {
    let path = match std::env::var_os("PP_RUN_TEST_MODEL") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("models/SmolLM2-135M-Instruct.Q4_1.gguf"),
    };
    assert!(path.is_file(), "{} is missing: run models/get", path.display());
    path
}

/// Gemma 3's file.
pub fn gemma3() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gemma-3-270m-q4_k_m.gguf");
    assert!(path.is_file(), "{} is missing: run models/get gemma3", path.display());
    path
}

/// SmolLM2's file, and its tokenizer.
pub fn tokenizer() -> (Gguf, Tokenizer) {
    let gguf = Gguf::open(&smollm2()).unwrap();
    let tokenizer = Tokenizer::load(&gguf).unwrap();
    (gguf, tokenizer)
}

/// The tokens of a text, in which names of control tokens stand for these.
pub fn tokens_of(tokenizer: &Tokenizer, text: &str) -> Vec<Token> {
    tokenizer.encode(text, false, true).unwrap()
}

/// The built program, apart from whoever runs the tests: see [`apart`].
pub fn pp_run() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pp-run"));
    apart(&mut command);
    command
}

/// Lets a command, which starts the program, neither find nor leave anything in the folders of whoever runs the tests: no configuration,
/// no chats and no models; and no prompt of an earlier run.
pub fn apart(command: &mut Command) -> &mut Command {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("home");
    for (name, folder) in [("CONFIG", "config"), ("DATA", "data"), ("STATE", "state"), ("CACHE", "cache")] {
        command.env(format!("XDG_{name}_HOME"), home.join(folder));
    }
    command.env("PP_ARG_NO_PROMPT_CACHE", "1")
}

/// Tests that hold this compute one after the other: ggml's threads wait by spinning, and two pools of them starve on few cores.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

/// Starts a program whose output [`finished`] takes.
pub fn started(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How long a process may take that only ends late when it hangs: the machine may do much else.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The output of a process that ends.
#[track_caller]
pub fn finished(mut child: Child) -> Output {
    let end = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("still running: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// Checks the exit code and a part of what is on stderr. A run that failed has one line of an error, and nothing on stdout.
#[track_caller]
pub fn check(id: &str, output: &Output, code: i32, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{id}: {stderr}");
    assert!(stderr.contains(part), "{id}: '{part}' expected: {stderr}");
    let errors = stderr.lines().filter(|l| l.starts_with("pp-run: error: ")).count();
    assert_eq!(errors, usize::from(code != 0), "{id}: {stderr}");
    assert!(code == 0 || output.stdout.is_empty(), "{id}: {}", String::from_utf8_lossy(&output.stdout));
}

/// The last perplexity that `pp-run perplexity` printed.
pub fn ppl(stdout: &str) -> f64 {
    stdout.split("PPL = ").last().unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// `tests/faults/shim.c`, built in a folder.
pub fn shim(dir: &Path) -> PathBuf {
    let shim = dir.join("shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).arg("-ldl").status();
    assert!(status.unwrap().success(), "a C compiler");
    shim
}

/// A model with two threads, for ggml's kernels.
pub fn load(path: &Path) -> Model {
    load_for(path, Kernels::Ggml, RopeOptions::default())
}

/// Layers on the GPU in a build for one: as tests/gpu says.
pub fn n_gpu_layers() -> u32 {
    match std::env::var("PP_ARG_N_GPU_LAYERS").as_deref() {
        Ok("all") => u32::MAX,
        Ok(n) => n.parse().unwrap(),
        Err(_) => 0,
    }
}

/// A model with two threads.
pub fn load_for(path: &Path, kernels: Kernels, rope: RopeOptions) -> Model {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    let gpu = GpuOptions { n_layers: Some(n_gpu_layers()), ..GpuOptions::default() };
    let weights = weights::Options { kernels, gpu, ..Default::default() };
    let options = ModelOptions { weights, rope, ..ModelOptions::new(path) };
    Model::load(gguf, &options, 2, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// A session for one sequence, one output.
pub fn session<'m>(model: &'m Model, context: &ContextOptions) -> Session<'m> {
    Session::new(model, context, 1, 1, Arc::new(AtomicBool::new(false))).unwrap()
}

/// Normalised mean squared error of `got` against `want`.
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut error, mut power) = (0.0f64, 0.0f64);
    for (&g, &w) in got.iter().zip(want) {
        error += (f64::from(g) - f64::from(w)).powi(2);
        power += f64::from(w).powi(2);
    }
    error / power
}

/// The most likely token; the first of equals, as libllama's greedy sampler.
pub fn argmax(logits: &[f32]) -> i32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best as i32
}
