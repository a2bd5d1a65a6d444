//! Models of architectures that pp-run has no graph for, by libllama.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::forge::{Arch, Forge};
use common::turn;
use ggml::Type;
use pp_run::engine::{LlamaSession, Options, Timeline, libllama::Model};
use pp_run::error::Kind;
use pp_run::gguf::Gguf;
use pp_run::model::Options as ModelOptions;

/// Experts, a state, both kinds of memory.
const ARCHS: [Arch; 3] = [Arch::Qwen3Moe, Arch::Mamba, Arch::Lfm2];

fn forged(dir: &Path, arch: Arch) -> PathBuf {
    let path = dir.join(arch.name()).with_extension("gguf");
    // In floats: which experts are chosen, quantised products may decide differently for other batches.
    Forge { arch, n_layer: 4, ..Forge::tiny(Type::F32, 4, 2) }.write(&path);
    path
}

fn load(path: &Path) -> Model {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    Model::load(gguf, &ModelOptions::new(path), &mut |_| std::ops::ControlFlow::Continue(())).unwrap()
}

fn options() -> Options {
    Options { n_ctx: Some(2048), n_ubatch: 64, ..Options::new(2) }
}

fn session(model: &Model) -> LlamaSession<'_> {
    LlamaSession::new(model, &options(), Arc::new(AtomicBool::new(false))).unwrap()
}

/// The logits of a text that is read at once.
fn alone(model: &Model, text: &[i32]) -> Vec<f32> {
    let mut session = session(model);
    assert_eq!(session.sync(text, &mut |_, _| {}).unwrap(), text.len());
    session.logits().to_vec()
}

fn near(a: &[f32], b: &[f32]) -> bool {
    common::nmse(a, b) < 1e-6
}

#[test]
fn they_answer_are_scored_and_timed() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "the lighthouse keeper had not spoken to anyone for a long time ".repeat(20)).unwrap();
    for arch in ARCHS {
        let model = forged(dir.path(), arch);
        let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
        let run = |args: &[&str]| {
            let out = Command::new(env!("CARGO_BIN_EXE_pp-run")).args(args).output().unwrap();
            let [stdout, stderr] = [&out.stdout, &out.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
            (out.status.code(), stdout, stderr)
        };
        // The one with experts has a graph of ours, too.
        let engine = if arch == Arch::Qwen3Moe { "libllama" } else { "auto" };
        let ask = ["-m", model, "-p", "abc", "-n", "8", "--temp", "0", "-no-cnv", "--engine", engine];
        let (code, first, note) = run(&ask);
        assert!(code == Some(0) && note.contains("by libllama: no pruning, no kernels of our own"), "{note}");
        assert_eq!(run(&ask).1, first, "the same answer again");
        let (code, table, error) =
            run(&["perplexity", "-m", model, "-f", text, "-c", "128", "--chunks", "2", "--engine", engine]);
        assert!(code == Some(0) && table.contains("Final estimate: PPL = "), "{error}");
        let (code, table, error) = run(&["bench", "-m", model, "-p", "16", "-n", "2", "-r", "1", "--engine", engine]);
        assert!(code == Some(0) && table.contains("pp16") && table.contains("libllama"), "{error}");
        for (more, part) in [
            (&["--prune", "0.3"][..], "--prune needs a graph of pp-run's own"),
            (&["--prompt-cache", "cache"][..], "--prompt-cache needs a graph of pp-run's own"),
        ] {
            let (code, out, error) = run(&[&ask[..], more].concat());
            assert!(code == Some(69) && out.is_empty() && error.contains(part), "{more:?}: {code:?} {error}");
        }
        if engine == "auto" {
            let (code, _, error) = run(&[&ask[..10], &["own"]].concat());
            assert!(code == Some(69) && error.contains("has no graph of its own for the architecture"), "{error}");
        }
        let (code, _, error) = run(&[&ask[..], &["--mlock"]].concat());
        assert!(code == Some(2) && error.contains("on which --mlock has no effect"), "{error}");
        let (code, _, error) = run(&["calibrate", "-m", model, "-f", text, "--engine", engine]);
        assert!(code == Some(69) && error.contains("calibrate needs a graph of pp-run's own"), "{error}");
    }
}

#[test]
fn what_was_read_is_not_read_again() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let model = load(&forged(dir.path(), arch));
        let mut session = session(&model);
        let has_state = arch != Arch::Qwen3Moe;
        let message = |n: usize, step: i32| (0..n as i32).map(move |i| (i * step + 7) % 500).collect::<Vec<i32>>();
        let first = message(150, 31);
        session.sync(&first, &mut |_, _| {}).unwrap();
        for token in [40, 41, 42] {
            session.decode(token).unwrap();
        }
        // The next turn begins with all that was read and written.
        let next = [&first[..], &[40, 41, 42, 43], &message(20, 7)].concat();
        assert_eq!(session.sync(&next, &mut |_, _| {}).unwrap(), 21, "{arch:?}");
        assert!(near(session.logits(), &alone(&model, &next)), "{arch:?}");
        // The answer is read as another one: the memory goes back to the end of the first message.
        session.decode(44).unwrap();
        let other = [&first[..], &[50, 51], &message(9, 5)].concat();
        assert_eq!(session.sync(&other, &mut |_, _| {}).unwrap(), 11, "{arch:?}");
        assert!(near(session.logits(), &alone(&model, &other)), "{arch:?}");
        // Back to the middle of a message: a state is of its end only.
        let middle = [&first[..100], &[60]].concat();
        let read = session.sync(&middle, &mut |_, _| {}).unwrap();
        assert_eq!(read, if has_state { 101 } else { 1 }, "{arch:?}");
        assert!(near(session.logits(), &alone(&model, &middle)), "{arch:?}");
    }
}

#[test]
fn an_interrupt_ends_a_prompt_soon_and_leaves_what_was_done() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    for arch in ARCHS {
        let path = dir.path().join("large.gguf");
        let forge = Forge { arch, n_layer: 4, n_embd: 512, n_ff: 2048, n_ctx: 8192, ..Forge::tiny(Type::Q8_0, 8, 2) };
        forge.write(&path);
        let model = load(&path);
        let interrupt = Arc::new(AtomicBool::new(false));
        let options = Options { n_ctx: Some(8192), n_ubatch: 512, ..options() };
        let mut session = LlamaSession::new(&model, &options, interrupt.clone()).unwrap();
        let prompt: Vec<i32> = (0..8000).map(|i| (i * 31 + 7) % 500).collect();
        let set = std::thread::spawn({
            let interrupt = interrupt.clone();
            move || {
                std::thread::sleep(Duration::from_millis(50));
                interrupt.store(true, Ordering::Relaxed);
                Instant::now()
            }
        });
        let error = session.sync(&prompt, &mut |_, _| {}).unwrap_err();
        let waited = set.join().unwrap().elapsed();
        assert_eq!(error.kind(), Kind::Interrupted, "{arch:?}: {error}");
        // No test asserts a time: this is two orders above what it takes.
        assert!(waited < Duration::from_secs(20), "{waited:?}");
        interrupt.store(false, Ordering::Relaxed);
        let done = session.n_past();
        assert!(done < prompt.len());
        let short = &prompt[..(done + 40).min(prompt.len())];
        session.sync(short, &mut |_, _| {}).unwrap();
        let mut fresh = LlamaSession::new(&model, &options, interrupt).unwrap();
        fresh.sync(short, &mut |_, _| {}).unwrap();
        assert!(near(session.logits(), fresh.logits()), "{arch:?}");
    }
}
