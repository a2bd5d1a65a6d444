//! Questions per second: each pair of a context and a choice by itself, and as `pp-run eval` computes them.
//!
//! cargo run --release --example questions -- MODEL ROWS.. [N]: the first N questions of each file, both ways alternately, three times

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use pp_run::engine::{Likelihood, Options as ContextOptions, Request, Session};
use pp_run::eval::{Rules, Task, name_of_file};
use pp_run::gguf::Gguf;
use pp_run::model::{Model, Options as ModelOptions};
use pp_run::tokenizer::Tokenizer;

/// Questions side by side, as in `pp-run eval`.
const SIDE_BY_SIDE: usize = 32;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let limit = args.pop_if(|n| n.parse::<usize>().is_ok()).map_or(100, |n| n.parse().unwrap());
    let path = PathBuf::from(args.remove(0));
    let gguf = Arc::new(Gguf::open(&path).unwrap());
    let tokenizer = Tokenizer::load(&gguf).unwrap();
    let model = Model::load(gguf, &ModelOptions::new(&path), 2, &mut |_| ControlFlow::Continue(())).unwrap();
    println!("| task | questions | choices by themselves, questions/s | as pp-run eval, questions/s | ratio |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for file in args.iter().map(Path::new) {
        let text = std::fs::read_to_string(file).unwrap();
        let task = Task::parse(file, name_of_file(file), &text, Rules::LmEval, limit).unwrap();
        let requests =
            |q: &pp_run::eval::Question| Rules::LmEval.requests(&tokenizer, &q.pairs, 8192).unwrap().unwrap();
        let questions: Vec<Vec<Request>> = task.questions.iter().map(requests).collect();
        let longest = questions.iter().flatten().map(|r| r.tokens.len()).max().unwrap();
        let context = ContextOptions { n_ctx: Some(longest as u32), ..ContextOptions::new(2) };
        let mut session = Session::new(&model, &context, SIDE_BY_SIDE, 512, Arc::default()).unwrap();
        let mut speeds = [Vec::new(), Vec::new()];
        for _ in 0..3 {
            let start = Instant::now();
            let alone =
                questions.iter().flatten().map(|r| session.likelihoods(&[std::slice::from_ref(r)]).unwrap()[0][0]);
            let alone: Vec<_> = alone.collect();
            speeds[0].push(questions.len() as f64 / start.elapsed().as_secs_f64());
            let start = Instant::now();
            let groups = questions.chunks(SIDE_BY_SIDE).map(|g| g.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let together: Vec<_> = groups.flat_map(|g| session.likelihoods(&g).unwrap()).flatten().collect();
            speeds[1].push(questions.len() as f64 / start.elapsed().as_secs_f64());
            // Of activations in 8 bits the least difference of rounding comes to some thousandths.
            let difference = |(a, b): (&Likelihood, &Likelihood)| (a.sum - b.sum).abs() / a.sum.abs().max(1.0);
            let worst = alone.iter().zip(&together).map(difference).fold(0.0, f64::max);
            assert!(worst < 0.1, "both ways compute the same: {worst}");
        }
        speeds.iter_mut().for_each(|s| s.sort_by(f64::total_cmp));
        let mut ratios: Vec<f64> = speeds[0].iter().zip(&speeds[1]).map(|(a, b)| b / a).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "| {} | {} | {:.2} | {:.2} | {:.2} |",
            task.name,
            questions.len(),
            speeds[0][1],
            speeds[1][1],
            ratios[1]
        );
    }
}
