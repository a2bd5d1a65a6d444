//! Long prompts that are kept without being asked for: a prompt that begins as one of them is answered as without, token for token, and what
//! is in their folder never makes a run fail.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::forge::{Forge, of_each_kind};
use common::{check, finished, load_for, pp_run, session, smollm2, started, turn};
use pp_run::engine::prompt_cache::Found;
use pp_run::engine::prompt_store::{LEAST, Store};
use pp_run::engine::{Options as ContextOptions, Session};
use pp_run::graph::CacheType;
use pp_run::model::RopeOptions;
use pp_run::tokenizer::Token;
use pp_run::weights::Kernels;

fn no_progress(_: usize, _: usize) {}

/// Some tokens of a random model.
fn text(n: usize, seed: usize) -> Vec<Token> {
    (0..n).map(|i| ((i * 101 + i * i * seed + 7) % 290) as Token).collect()
}

/// The bits of the logits after a prompt, and after each of some tokens behind it.
fn bits_after(session: &mut Session, prompt: &[Token]) -> Vec<Vec<u32>> {
    let bits = |session: &Session| session.logits().iter().map(|l| l.to_bits()).collect::<Vec<u32>>();
    session.sync(prompt, &mut no_progress).unwrap();
    let mut all = vec![bits(session)];
    for token in [3, 5, 7] {
        session.decode(token).unwrap();
        all.push(bits(session));
    }
    all
}

#[test]
fn what_is_taken_over_computes_the_same_bits() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("model.gguf"), dir.path().join("cache"));
    // The last pieces have few tokens or many, and end where pieces do: tokens of the first prompt, in common, of the second.
    let prompts = [(150, 150, 190), (150, 130, 200), (150, 149, 151), (147, 120, 146), (144, 101, 192)];
    let caches = [(CacheType::F16, true), (CacheType::F32, false), (CacheType::Q8_0, true), (CacheType::Q4_1, true)];
    let mut n_whole = 0;
    for (name, forge) in of_each_kind() {
        forge.write(&path);
        for (kernels, caches, prompts) in
            [(Kernels::Native, &caches[..], &prompts[..]), (Kernels::Ggml, &caches[..2], &prompts[..2])]
        {
            let model = load_for(&path, kernels, RopeOptions::default());
            for &(cache, flash_attn) in caches {
                let options = ContextOptions {
                    n_ctx: Some(256),
                    n_ubatch: 48,
                    cache_type_k: cache,
                    cache_type_v: cache,
                    flash_attn,
                    ..ContextOptions::new(1)
                };
                let what = format!("{name}, {kernels:?}, cache {cache:?}, flash attention {flash_attn}");
                let [mut warm, mut cold] = [0; 2].map(|_| session(&model, &options));
                for &(n_first, n_common, n) in prompts {
                    let first = text(n_first, 1);
                    cold.rewind(0);
                    cold.sync(&first, &mut no_progress).unwrap();
                    cold.save_state(&file, cold.left_to_others(&first)).unwrap();
                    let prompt = [&first[..n_common], &text(n - n_common, 5)].concat();
                    assert_eq!(warm.restore_beginning(&file, &prompt).unwrap(), Found::Restored, "{what}");
                    let taken = warm.n_past();
                    assert!(taken >= 96 && taken <= n_common && warm.tokens() == &prompt[..taken], "{what}: {taken}");
                    n_whole += usize::from(taken == n_common);
                    cold.rewind(0);
                    assert!(bits_after(&mut warm, &prompt) == bits_after(&mut cold, &prompt), "{what}: {taken} of {n}");
                }
            }
        }
    }
    assert!(n_whole > 30, "with our kernels all that two prompts have in common is taken over: {n_whole}");
}

#[test]
fn the_least_recently_used_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let (path, folder) = (dir.path().join("model.gguf"), dir.path().join("prompts"));
    Forge::smallest().write(&path);
    let model = load_for(&path, Kernels::Native, RopeOptions::default());
    let options = ContextOptions { n_ctx: Some(1024), ..ContextOptions::new(1) };
    let new = || session(&model, &options);
    let n_bytes = new().state_bytes(300);
    let store = Store { dir: folder.clone(), limit: 3 * n_bytes + 100 };
    let ask = |store: &Store, prompt: &[Token]| {
        let mut session = new();
        let taken = store.take(&mut session, prompt);
        session.sync(prompt, &mut no_progress).unwrap();
        let kept = store.keep(&session, prompt, &taken).unwrap();
        (taken.n, kept)
    };
    let age = |seconds: u64| {
        for entry in fs::read_dir(&folder).unwrap() {
            let file = fs::File::open(entry.unwrap().path()).unwrap();
            let time = file.metadata().unwrap().modified().unwrap();
            file.set_modified(time - Duration::from_secs(seconds)).unwrap();
        }
    };
    let names = || fs::read_dir(&folder).unwrap().count();
    for seed in 1..=3 {
        assert_eq!(ask(&store, &text(300, seed)), (0, Some(300)));
        age(10);
    }
    // The first is used, so the second goes when a fourth comes.
    assert_eq!(ask(&store, &[text(300, 1), vec![9; 20]].concat()), (300, None));
    age(10);
    assert_eq!((ask(&store, &text(300, 4)), names()), ((0, Some(300)), 3));
    let found = [1, 2, 3, 4].map(|seed| store.take(&mut new(), &[text(300, seed), vec![9; 20]].concat()).n);
    assert_eq!(found, [300, 0, 300, 300]);
    // A longer prompt takes the place of the one that it goes on from.
    let long = [text(300, 1), text(LEAST, 7)].concat();
    let large = Store { dir: folder.clone(), limit: 10 * n_bytes };
    assert_eq!((ask(&large, &long), names()), ((300, Some(300 + LEAST)), 3));
    // What is in common with several is taken from where there is most of it.
    assert_eq!(store.take(&mut new(), &[&long[..400], &[9; 20][..]].concat()).n, 400);
    // Nothing that is larger than all that may be there, or that is short.
    let little = Store { dir: dir.path().join("little"), limit: n_bytes - 1 };
    assert_eq!((ask(&little, &text(300, 5)), little.dir.exists()), ((0, None), false));
    assert_eq!(ask(&store, &text(LEAST - 1, 5)), (0, None));
    // A context that is smaller than what is kept.
    let mut small = session(&model, &ContextOptions { n_ctx: Some(512), ..options.clone() });
    assert_eq!(store.take(&mut small, &[&long[..400], &[9; 20][..]].concat()).n, 400);
    assert_eq!(store.take(&mut session(&model, &ContextOptions { n_ctx: Some(256), ..options.clone() }), &long).n, 0);
}

/// A cache home, a data home, and a tiny model beside them.
struct Home {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model.gguf");
        Forge { n_layer: 4, ..Forge::smallest() }.write(&model);
        Home { dir, model }
    }

    fn prompts(&self) -> PathBuf {
        self.dir.path().join("cache/pp-run/prompts")
    }

    fn at_home(&self, command: &mut Command) {
        command.env("PP_ARG_THREADS", "1").env_remove("PP_ARG_NO_PROMPT_CACHE");
        command.env("XDG_CACHE_HOME", self.dir.path().join("cache")).env("XDG_DATA_HOME", self.dir.path().join("data"));
    }

    fn command(&self, prompt: &str, more: &[&str]) -> Command {
        let mut command = pp_run();
        command.arg("-m").arg(&self.model).args(["-p", prompt, "-n", "6", "--temp", "0", "--no-stdin"]).args(more);
        self.at_home(&mut command);
        command
    }

    /// The answer, the hash of the last logits, and the tokens that were taken over.
    #[track_caller]
    fn ask(&self, prompt: &str, more: &[&str]) -> (Vec<u8>, String, usize) {
        let output = finished(started(&mut self.command(prompt, more)));
        check(prompt, &output, 0, "generated ");
        said(&output)
    }

    /// The files, by their names.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.prompts()).into_iter().flatten();
        let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn said(output: &Output) -> (Vec<u8>, String, usize) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let logits = stderr.split("logits ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let n = |line: &str| line.strip_prefix("pp-run: ")?.split_once(" of ")?.0.parse().ok();
    let taken = stderr.lines().find(|l| l.ends_with(" tokens from the cache")).and_then(n).unwrap_or(0);
    let cached = stderr.split(" cached)").next().filter(|s| s.len() < stderr.len());
    let cached = cached.map_or(0, |s| s.rsplit('(').next().unwrap().parse().unwrap());
    assert_eq!(taken, cached, "{stderr}");
    (output.stdout.clone(), logits, taken)
}

/// A text of some hundred tokens, and two questions to it.
fn questions(n: usize) -> [String; 2] {
    let story = (0..n).map(|i| format!("line {i} says {}. ", i * i % 97)).collect::<String>();
    ["What is it about?", "Who says so, and when?"].map(|question| format!("{story}\n\n{question}"))
}

#[test]
fn a_second_question_is_answered_as_without() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home { dir, model: smollm2() };
    let story = home.dir.path().join("story.txt");
    fs::write(&story, "The river rose in the night and took the bridge with it. ".repeat(26)).unwrap();
    let file = ["-f", story.to_str().unwrap()];
    for (more, least) in [
        (&["-ub", "64"][..], 300),
        (&["-ctk", "q8_0", "-ctv", "q8_0", "-ub", "64"], 300),
        (&["--kernels", "ggml", "-ub", "64"], 256),
        (&["-fa", "off", "-ub", "64"], 256),
    ] {
        let more = [&file[..], more].concat();
        let without = home.ask("Who took the bridge?", &[&more[..], &["--no-prompt-cache"]].concat());
        assert_eq!((home.ask("When did it rise?", &more).2, without.2), (0, 0), "{more:?}");
        let with = home.ask("Who took the bridge?", &more);
        assert!((&with.0, &with.1) == (&without.0, &without.1) && with.2 >= least, "{more:?}: {with:?} {without:?}");
    }
    assert_eq!(home.files().len(), 4, "what differs in settings is kept apart");
}

#[test]
fn what_is_read_with_pruning_is_neither_kept_nor_taken() {
    let home = Home::new();
    let [first, second] = questions(30);
    let prune = ["--prune", "0.4", "--prune-skip", "0", "--prune-multiple", "16", "--prune-min-tokens", "2"];
    let without = home.ask(&second, &[&prune[..], &["--no-prompt-cache"]].concat());
    home.ask(&first, &prune);
    assert_eq!(home.files().len(), 0);
    home.ask(&first, &[]);
    assert_eq!((home.files().len(), home.ask(&second, &prune)), (1, without));
}

#[test]
fn what_says_no_leaves_nothing() {
    let home = Home::new();
    let [first, _] = questions(30);
    let cache = home.dir.path().join("file");
    let trace = home.dir.path().join("trace");
    for more in [
        &["--no-prompt-cache"][..],
        &["--no-cache-prompt"],
        &["--no-save"],
        &["--prompt-cache-limit", "0"],
        &["--prompt-cache-limit", "10K"],
        &["--prompt-cache", cache.to_str().unwrap()],
        &["--trace", trace.to_str().unwrap()],
        &["--engine", "libllama"],
    ] {
        assert_eq!((home.ask(&first, more).2, home.files().len()), (0, 0), "{more:?}");
    }
    home.ask("short", &[]);
    assert!(!home.prompts().exists());
    let refused = finished(started(&mut home.command("x", &["--prompt-cache-limit", "much"])));
    check("limit", &refused, 2, "--prompt-cache-limit is much, expected a number of bytes");
}

#[test]
fn the_command_lists_and_clears() {
    let home = Home::new();
    let cache = |args: &[&str]| {
        let mut command = pp_run();
        home.at_home(command.arg("cache").args(args));
        let output = finished(started(&mut command));
        check("cache", &output, 0, "");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(cache(&[]).contains("prompts: 0 prompts"));
    home.ask(&questions(30)[0], &[]);
    home.ask(&questions(60)[0][5..], &[]);
    let list = cache(&[]);
    assert!(list.contains("prompts: 2 prompts") && list.matches(" tokens ").count() == 2, "{list}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&home.prompts()), 0o700);
        assert!(home.files().iter().all(|file| mode(file) == 0o600));
    }
    fs::write(home.prompts().join("notes.txt"), "mine").unwrap();
    assert!(cache(&["--clear"]).contains("2 prompts deleted"));
    assert_eq!(home.files(), [home.prompts().join("notes.txt")]);
}

#[test]
fn what_is_damaged_goes_and_what_is_foreign_stays() {
    let home = Home::new();
    let [first, second] = questions(40);
    let without = home.ask(&second, &["--no-prompt-cache"]);
    home.ask(&first, &[]);
    let file = home.files().remove(0);
    let good = fs::read(&file).unwrap();
    let taken = home.ask(&second, &[]).2;
    assert!(taken > LEAST);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    // Of a damaged header nothing is known to fit, so nobody looks further; of damaged cells there is a line.
    let cases: [(Vec<u8>, bool); 8] = [
        (Vec::new(), false),
        (good[..100].to_vec(), false),
        (good[..good.len() / 2].to_vec(), true),
        (flipped(9), false),
        (flipped(30), false),
        (flipped(good.len() / 2), true),
        (flipped(good.len() - 1), true),
        (b"dear diary".to_vec(), false),
    ];
    for (bytes, has_line) in cases {
        fs::write(&file, &bytes).unwrap();
        let output = finished(started(&mut home.command(&second, &[])));
        let stderr = String::from_utf8_lossy(&output.stderr);
        check("damaged", &output, 0, "generated ");
        assert_eq!(stderr.matches("warning").count(), usize::from(has_line), "{stderr}");
        assert!(!has_line || stderr.contains("is damaged") && stderr.contains(": deleted"), "{stderr}");
        let (stdout, logits, n) = said(&output);
        assert_eq!((stdout, logits, n), (without.0.clone(), without.1.clone(), 0));
        assert!(has_line != file.exists() || bytes.is_empty(), "{stderr}");
        home.files().iter().for_each(|file| fs::remove_file(file).unwrap());
    }
    // A part of the folder that is no file, and a link to nothing.
    fs::create_dir(&file).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("/nonexistent", file.with_extension("a.kv")).unwrap();
    assert_eq!((home.ask(&second, &[]).0, home.ask(&second, &[]).2 > 0), (without.0, true));
}

#[test]
fn a_folder_that_cannot_be_written_fails_no_run() {
    let home = Home::new();
    let [first, second] = questions(30);
    let without = home.ask(&second, &["--no-prompt-cache"]);
    // A file is where the folder would be.
    let cache = home.dir.path().join("cache");
    fs::write(&cache, "").unwrap();
    for prompt in [&first, &second] {
        let output = finished(started(&mut home.command(prompt, &[])));
        check("file", &output, 0, "generated ");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"));
    }
    fs::remove_file(&cache).unwrap();
    // Without any home.
    let mut command = home.command(&second, &[]);
    let output = finished(started(command.env_remove("XDG_CACHE_HOME").env_remove("HOME")));
    check("homeless", &output, 0, "generated ");
    assert_eq!(said(&output), without);
    // Each call that can fail.
    #[cfg(target_os = "linux")]
    {
        let shim = common::shim(home.dir.path());
        let mark = home.dir.path().join("mark");
        for (call, error) in [("write", 28), ("fsync", 5), ("rename", 30)] {
            let mut n_failed = 0;
            for n in 1..40 {
                let _ = fs::remove_file(&mark);
                home.files().iter().for_each(|file| fs::remove_file(file).unwrap());
                let mut command = home.command(&second, &["-q"]);
                command.env("LD_PRELOAD", &shim).env("FAULT_CALL", call).env("FAULT_N", n.to_string());
                command.env("FAULT_ERRNO", error.to_string()).env("FAULT_MARK", &mark);
                let output = finished(started(&mut command));
                if !mark.exists() {
                    break;
                }
                // The answer itself is written, too.
                if output.status.code() == Some(0) {
                    assert_eq!(output.stdout, without.0, "{call} {n}");
                }
                n_failed += usize::from(output.status.code() == Some(0));
                assert!(home.files().iter().all(|f| f.extension().is_some_and(|e| e == "kv")), "{call} {n}");
            }
            assert!(n_failed > 0, "{call}");
        }
    }
}

#[test]
fn several_processes_at_once() {
    let home = Home::new();
    let prompts: Vec<String> = (0..3).flat_map(|i| questions(30).map(|q| format!("Text {i}. {q}"))).collect();
    let without: Vec<_> = prompts.iter().map(|p| home.ask(p, &["--no-prompt-cache"])).collect();
    home.ask(&prompts[0], &[]);
    let limit = (2 * fs::metadata(&home.files()[0]).unwrap().len() + 5000).to_string();
    for _ in 0..3 {
        let runs: Vec<_> =
            prompts.iter().map(|p| started(&mut home.command(p, &["--prompt-cache-limit", &limit]))).collect();
        for (run, without) in runs.into_iter().zip(&without) {
            let output = finished(run);
            check("at once", &output, 0, "generated ");
            let (stdout, logits, _) = said(&output);
            assert_eq!((&stdout, &logits), (&without.0, &without.1));
            assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"));
        }
    }
    // As many as run at once may write one more than there is room for.
    assert!(home.files().len() <= 2 + prompts.len());
}

#[cfg(unix)]
#[test]
fn a_chat_begins_where_another_began() {
    let home = Home::new();
    let [first, second] = questions(30);
    let chat = |prompt: &str| {
        let mut command = home.command(prompt, &["-cnv", "--chat-template", "chatml", "--simple-io", "--no-history"]);
        command.env("TERM", "dumb");
        let mut term = common::term::Term::with(command, 200, 24);
        term.expect("wrote ");
        term.prompt();
        term.line("And then?");
        term.expect("wrote ");
        term.prompt();
        term.line("/exit");
        term.finish().1
    };
    assert!(!chat(&first).contains("from the cache"));
    assert_eq!(home.files().len(), 1, "the first prompt only");
    let text = chat(&second);
    assert!(text.matches(" tokens from the cache").count() == 1, "{text}");
}
