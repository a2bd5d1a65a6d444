//! The command line: from arguments to every module's own options, resolved and checked. Nothing below knows of it.
//!
//! `normalise` turns what the user typed, the environment and the configuration into one list of long flags; clap reads the list into
//! the `Args` of `args`; each file named after a command or a module has the flags of that and makes its options of them.

mod answer;
mod args;
mod batch;
mod bench;
mod cache;
mod calibrate;
mod chats;
mod context;
mod eval;
mod help;
mod log;
mod manual;
mod model;
mod normalise;
mod perplexity;
mod prune;
mod run;
mod sampling;
mod set;
mod show;
mod tokenize;
mod value;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};

use crate::commands::Command;
use crate::commands::run::Settings;
use crate::error::{Error, Result};
use args::{Cli, Sub};
use normalise::{Normalised, normalise};
use value::one_line;

/// What the user asked for.
#[derive(Debug)]
pub enum Parsed {
    /// A command, with lines to print on stderr first.
    Command(Box<Command>, Vec<String>),
    /// Text to print on stdout, with lines to print on stderr first: `--help`, `--version`, completions, the manual.
    Text(String, Vec<String>),
}

/// Parses an argument list, the program's name first. Errors are of kind [`crate::error::Kind::Usage`].
pub fn parse(args: Vec<OsString>, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Parsed> {
    let bare = args.len() <= 1;
    let command = Cli::command();
    let Normalised { args, warnings, given, sources } = normalise(&command, args, env)?;
    options(command, args, given, bare, warnings).map_err(|e| with_source(e, &sources))
}

/// The same error, with the variable or the key in front that has the value which is refused: the user never typed the flag.
fn with_source(e: Error, sources: &[[String; 2]]) -> Error {
    let text = e.to_string();
    let names = |long: &str| {
        text.match_indices(&format!("--{long}"))
            .any(|(at, flag)| !text[at + flag.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '-'))
    };
    match sources.iter().find(|[long, _]| names(long)) {
        Some([_, source]) => Error::new(e.kind(), format!("{source}: {text}")),
        None => e,
    }
}

/// What a list of arguments that clap can read asks for.
fn options(
    command: clap::Command,
    args: Vec<OsString>,
    given: Vec<String>,
    bare: bool,
    warnings: Vec<String>,
) -> Result<Parsed> {
    let usage = |e: clap::Error| Error::usage(one_line(&e.render().to_string()));
    let matches = match command.try_get_matches_from(&args) {
        Ok(matches) => matches,
        Err(e) if !e.use_stderr() => return Ok(Parsed::Text(e.render().to_string(), Vec::new())),
        Err(e) => return Err(usage(e)),
    };
    let mut cli = Cli::from_arg_matches(&matches).map_err(usage)?;
    let command = match cli.command {
        None if cli.run.list_devices => return Ok(Parsed::Text(help::devices(), warnings)),
        None => {
            // A saved chat knows its model.
            let model = cli.run.model.take().or_else(|| cli.run.resume.is_some().then(PathBuf::new));
            let settings = Settings { args, given, names: set::SETTABLE, change: set::set };
            match model {
                Some(model) => Command::Run(Box::new(run::options(model, cli.run, settings)?)),
                None if bare => Command::Models,
                None => Command::NoModel,
            }
        }
        Some(Sub::Batch(a)) => {
            let settings = Settings { args, given, names: &[], change: set::set_of_row };
            Command::Batch(Box::new(batch::options(*a, cli.run, settings)?))
        }
        Some(Sub::Show(a)) => Command::Show(show::options(a)?),
        Some(Sub::Tokenize(a)) => Command::Tokenize(tokenize::options(a)),
        Some(Sub::Perplexity(a)) => Command::Perplexity(Box::new(perplexity::options(a)?)),
        Some(Sub::Eval(a)) => Command::Eval(eval::options(*a)?),
        Some(Sub::Calibrate(a)) => Command::Calibrate(calibrate::options(a)?),
        Some(Sub::Bench(a)) => Command::Bench(bench::options(a)?),
        Some(Sub::Chats(a)) => Command::Chats(chats::options(a)),
        Some(Sub::Cache(a)) => Command::Cache(cache::options(&a)),
        Some(Sub::Doctor) => Command::Doctor,
        Some(Sub::Completions { shell }) => return Ok(Parsed::Text(help::completions(shell)?, warnings)),
        Some(Sub::Man) => return Ok(Parsed::Text(help::manual()?, warnings)),
    };
    Ok(Parsed::Command(Box::new(command), warnings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::terminal::Tristate;
    use crate::commands::run::Options;
    use crate::error::Kind;
    use crate::generate::Predict;
    use crate::gguf::OverrideValue;
    use crate::graph::CacheType;
    use crate::sampler;
    use crate::weights::Kernels;

    fn parse_line(line: &[&str]) -> Result<Parsed> {
        let args = std::iter::once("pp-run").chain(line.iter().copied()).map(OsString::from).collect();
        parse(args, &|_| None)
    }

    fn options(line: &[&str]) -> Options {
        let all: Vec<&str> = ["-m", "x.gguf"].iter().chain(line).copied().collect();
        match parse_line(&all).unwrap() {
            Parsed::Command(c, _) => match *c {
                Command::Run(o) => *o,
                other => panic!("{other:?}"),
            },
            Parsed::Text(t, _) => panic!("{t}"),
        }
    }

    #[test]
    fn clap_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_llama_cpps() {
        let o = options(&[]);
        assert_eq!(o.sampling, sampler::Options::default());
        assert_eq!((o.context.n_ctx, o.context.n_batch, o.context.n_ubatch), (None, 2048, 512));
        assert_eq!(o.limits.predict, Predict::Unlimited);
    }

    #[test]
    fn values_are_understood() {
        let o =
            options(&["-n", "-2", "-c", "0", "-fa", "-ctk", "q8_0", "--temp", "-1", "-p", r"a\n\x41\q", "-s", "-1"]);
        assert_eq!(o.limits.predict, Predict::FillContext);
        assert_eq!(o.context.n_ctx, Some(0));
        assert!(o.context.flash_attn && !options(&["-fa", "off"]).context.flash_attn);
        assert_eq!(o.context.cache_type_k, CacheType::Q8_0);
        assert_eq!(o.sampling.temperature, -1.0);
        assert_eq!(o.sampling.seed, None);
        assert_eq!(o.prompt.as_deref(), Some("a\nA\\q"));
        let o = options(&["-p", r"a\n", "--no-escape", "-r", "x", "--stop", "y", "-cnv", "-no-cnv", "-ngl", "all"]);
        assert_eq!(o.prompt.as_deref(), Some(r"a\n"));
        assert_eq!(o.limits.stop, ["x", "y"]);
        assert_eq!(o.conversation, Tristate::Off);
        assert_eq!(o.model.weights.gpu.n_layers, Some(u32::MAX));
        assert_eq!(o.model.weights.kernels, Kernels::Auto);
        assert_eq!(options(&["--kernels", "native"]).model.weights.kernels, Kernels::Native);
        let o = options(&["--override-kv", "a.b=int:3,c=str:x"]);
        assert_eq!(
            o.model.override_kv,
            [("a.b".into(), OverrideValue::Int(3)), ("c".into(), OverrideValue::Str("x".into()))]
        );
    }

    #[test]
    fn samplers_are_llama_cpps() {
        use sampler::{Mirostat, Step};
        let sampling = |line: &[&str]| options(line).sampling;
        let names = sampling(&["--samplers", "Temp;top-k;minp;typical;adaptive_p"]);
        assert_eq!(names.steps, [Step::Temperature, Step::TopK, Step::MinP, Step::TypicalP]);
        let letters = sampling(&["--samplers", "dry", "--sampling-seq", "kxa"]);
        assert_eq!(letters.steps, [Step::TopK, Step::Xtc]);
        assert_eq!(sampling(&["--sampler-seq", "k", "--samplers", "dry"]).steps, [Step::Dry]);
        assert_eq!(sampling(&["--sampler-seq", "edskypmxt"]), sampler::Options::default());
        let o = sampling(&["-l", "5+1.5", "-l", "7-inf", "--top-nsigma", "1", "--mirostat", "2", "--typical-p", "0.5"]);
        assert_eq!(o.logit_bias, [(5, 1.5), (7, f32::NEG_INFINITY)]);
        assert_eq!((o.top_n_sigma, o.mirostat, o.typical_p), (1.0, Mirostat::Two, 0.5));
        let breakers = |line: &[&str]| sampling(line).dry.breakers;
        assert_eq!(breakers(&["--dry-sequence-breaker", "x", "--dry-sequence-breaker", r"\n"]), ["x", "\n"]);
        assert_eq!(breakers(&["--dry-sequence-breaker", r"\n", "--no-escape"]), [r"\n"]);
        assert_eq!(breakers(&["--dry-sequence-breaker", "none"]), [""; 0]);
    }

    #[test]
    fn bad_values_are_refused_in_one_line() {
        for line in [
            &["-n", "-3"][..],
            &["-c", "-1"],
            &["-b", "0"],
            &["--top-p", "2"],
            &["-t", "1000"],
            &["-ctk", "q4_9"],
            &["-fa", "maybe"],
            &["--temp", "warm"],
            &["--temp", "nan"],
            &["--override-kv", "a=b"],
            &["--kernels", "mine"],
            &["--pack", "never"],
            &["--pack", "resident", "--kernels", "ggml"],
            &["--chat-template-kwargs", "[]"],
            &["--samplers", "top_k;topq"],
            &["--sampler-seq", "kz"],
            &["-l", "15043"],
            &["-l", "a+1"],
            &["-l", "1++1"],
            &["-l", "1+inf"],
            &["--mirostat", "3"],
            &["--dry-base", "0.5"],
            &["--dry-sequence-breaker", ""],
            &["--adaptive-target", "1.5"],
            &["--typical", "nan"],
            &["-n"],
        ] {
            let all: Vec<&str> = ["-m", "x.gguf"].iter().chain(line).copied().collect();
            let error = parse_line(&all).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{line:?}");
            assert!(!error.to_string().contains('\n') && error.to_string().len() < 200, "{error}");
        }
    }

    #[test]
    fn without_a_model_models_are_looked_for() {
        let command = |line: &[&str]| match parse_line(line).unwrap() {
            Parsed::Command(c, _) => *c,
            Parsed::Text(t, _) => panic!("{t}"),
        };
        assert!(matches!(command(&[]), Command::Models));
        assert!(matches!(command(&["-p", "x"]), Command::NoModel));
        let Command::Run(o) = command(&["x.gguf", "-p", "x"]) else { panic!("a file is a model to run") };
        assert_eq!((o.model.path, o.prompt.as_deref()), ("x.gguf".into(), Some("x")));
    }
}
