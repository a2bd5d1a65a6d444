//! What a step of several tokens takes, as a draft has them, as a multiple of a step of one: `steps MODEL DEPTH ROUNDS THREADS`.
//!
//! Steps of all sizes take turns, a few of each at a time. What is printed is the fastest of each, as others may use the machine too, and what
//! a change of size costs.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use pp_run::engine::{Options, Session};
use pp_run::gguf::Gguf;
use pp_run::model::{self, Model};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, numbers @ ..] = &args[..] else { panic!("steps MODEL DEPTH ROUNDS THREADS") };
    let numbers: Vec<usize> = numbers.iter().map(|n| n.parse().expect("a number")).collect();
    let [depth, rounds, n_threads] = numbers[..] else { panic!("steps MODEL DEPTH ROUNDS THREADS") };
    let path = PathBuf::from(path);
    let gguf = Arc::new(Gguf::open(&path).unwrap());
    let model = Model::load(gguf, &model::Options::new(&path), n_threads, &mut |_| ControlFlow::Continue(())).unwrap();
    let options = Options { n_ctx: Some((depth + 64) as u32), ..Options::new(n_threads) };
    let mut session = Session::new(&model, &options, 1, 1, Arc::default()).unwrap();
    let tokens: Vec<i32> = (0..depth + 16).map(|i| (i * 7919 % model.n_vocab()) as i32).collect();
    session.sync(&tokens[..depth], &mut |_, _| {}).unwrap();
    let most = session.max_draft() + 1;
    let mut times = vec![[Vec::new(), Vec::new()]; most + 1];
    for _ in 0..rounds {
        for n in 1..=most {
            for again in 0..4 {
                let start = Instant::now();
                session.decode_draft(tokens[depth], &tokens[depth + 1..depth + n]).unwrap();
                times[n][usize::from(again > 0)].push(start.elapsed().as_secs_f64());
                session.keep_draft(0);
                session.rewind(depth);
            }
        }
    }
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let one = least(&times[1][1]);
    for (n, [first, again]) in times.iter().enumerate().skip(1) {
        let (first, again) = (least(first), least(again));
        println!(
            "{n} tokens: {:.2} ms, {:.2} of one; after another size {:.2} ms more",
            again * 1e3,
            again / one,
            (first - again) * 1e3
        );
    }
}
