//! Loading and computing graphs.

mod common;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use ggml::{ComputeError, Device, Executor, Graph, Op, Parts, Place, Slot, Source, Specs, Store, Type};

/// `y = factor * x`, as a row of a matrix times a column.
fn times(store: &Rc<Store>, id: ggml::TensorId) -> (Graph, (Slot, Slot)) {
    Graph::build(8, |b| {
        let (x, slot) = b.input("x", Type::F32, [1, 1, 1, 1]);
        (slot, b.output(b.mul_mat(b.leaf(store, id), x)))
    })
}

fn factors(values: &[f32]) -> (Rc<Store>, Vec<ggml::TensorId>) {
    let (store, ids) = zeros(&vec![(Type::F32, [1, 1, 1, 1]); values.len()]);
    ids.iter().zip(values).for_each(|(&id, v)| store.write(id, 0, &v.to_le_bytes()));
    (store, ids)
}

/// Bytes on all devices.
fn total(sizes: Vec<(Device, usize)>) -> usize {
    sizes.into_iter().map(|(_, bytes)| bytes).sum()
}

#[test]
fn two_loaded_graphs_take_turns() {
    let (store, ids) = factors(&[2.0, 3.0]);
    let mut executor = executor();
    let mut loaded: Vec<_> = ids
        .iter()
        .map(|&id| {
            let (graph, slots) = times(&store, id);
            let mut schedule = executor.schedule();
            schedule.load(graph).unwrap();
            (schedule, slots)
        })
        .collect();
    for i in 0..6 {
        let (schedule, (x, _)) = &mut loaded[i % 2];
        schedule.set(*x, &[i as f32]);
        executor.compute(schedule, 1 + i % 2).unwrap();
        if i > 0 {
            // The other graph's result is still there.
            for (i, (schedule, (_, y))) in [i, i - 1].into_iter().map(|i| (i, &loaded[i % 2])) {
                let mut got = [0.0f32];
                schedule.get(*y, &mut got);
                assert_eq!(got, [[2.0, 3.0][i % 2] * i as f32]);
            }
        }
    }
}

#[test]
fn a_schedule_keeps_what_it_needs() {
    let (store, ids) = factors(&[2.0]);
    let mut executor = executor();
    let mut schedule = executor.schedule();
    let (graph, (x, y)) = times(&store, ids[0]);
    schedule.load(graph).unwrap();
    drop(store);
    schedule.set(x, &[4.0f32]);
    executor.compute(&mut schedule, 1).unwrap();
    drop(executor);
    let mut got = [0.0f32];
    schedule.get(y, &mut got);
    assert_eq!(got, [8.0]);
}

#[test]
fn a_schedule_holds_one_graph_after_the_other() {
    let (store, ids) = factors(&[2.0, 3.0]);
    let mut executor = executor();
    let mut schedule = executor.schedule();
    let (graph, _) = times(&store, ids[0]);
    assert!(total(schedule.measure(&graph)) > 0);
    // A graph that was measured and reserved can still be loaded, and one that was measured only.
    schedule.reserve(&graph).unwrap();
    schedule.load(graph).unwrap();
    let (graph, _) = times(&store, ids[0]);
    assert!(total(executor.schedule().measure(&graph)) > 0);
    assert!(total(schedule.measure(&graph)) > 0);
    schedule.load(graph).unwrap();
    let (graph, (x, y)) = times(&store, ids[1]);
    schedule.load(graph).unwrap();
    schedule.set(x, &[4.0f32]);
    executor.compute(&mut schedule, 1).unwrap();
    let mut got = [0.0f32];
    schedule.get(y, &mut got);
    assert_eq!(got, [12.0]);
    assert_eq!(Rc::strong_count(&store), 2);
    schedule.unload();
    assert_eq!(Rc::strong_count(&store), 1);
    assert_panics("a graph is loaded", || schedule.set(x, &[0.0f32]));
    assert_panics("a graph is loaded", || schedule.get(y, &mut [0.0f32]));
    assert_panics("a graph is loaded", || ignore(executor.compute(&mut schedule, 1)));
    assert_panics("a graph is loaded", || ignore(executor.compute_traced(&mut schedule, 1)));
    schedule.unload();
}

#[test]
fn tensors_without_memory_are_only_measured() {
    let (store, ids) = factors(&[2.0]);
    let mut specs = Specs::new();
    let place = Place::Buffer(Device::cpu().buffer_type());
    let id = specs.push(ggml::TensorSpec { name: "factor".into(), ty: Type::F32, ne: [1, 1, 1, 1], place });
    let sketch = Rc::new(Store::sketch(specs));
    let mut schedule = executor().schedule();
    let (graph, _) = times(&sketch, id);
    assert_eq!(schedule.measure(&graph), schedule.measure(&times(&store, ids[0]).0));
    assert_panics("without memory", || ignore(schedule.load(graph)));
    assert_panics("has no memory", || sketch.write(id, 0, &[0; 4]));
    assert_panics("has no memory", || sketch.zero(id, 0, 4));
    assert_panics("has no memory", || sketch.read(id, 0, &mut [0; 4]));
    assert_panics("have no memory", || ignore(sketch.lock()));
    let (graph, _) = times(&store, ids[0]);
    schedule.load(graph).unwrap();
}

#[test]
fn a_graph_without_operations_is_computed() {
    let mut executor = executor();
    let mut schedule = executor.schedule();
    schedule.load(Graph::build(0, |_| ()).0).unwrap();
    executor.compute(&mut schedule, 2).unwrap();
    let (graph, (x, y)) = Graph::build(1, |b| {
        let (x, slot) = b.input("x", Type::F32, [2, 1, 1, 1]);
        (slot, b.output(x))
    });
    schedule.load(graph).unwrap();
    schedule.set(x, &[1.0f32, 2.0]);
    executor.compute(&mut schedule, 2).unwrap();
    let mut got = [0.0f32; 2];
    schedule.get(y, &mut got);
    assert_eq!(got, [1.0, 2.0]);
}

#[test]
fn a_schedule_refuses() {
    let mut executor = executor();
    let mut other = common::executor();
    let mut schedule = executor.schedule();
    let (graph, (x, y, unread)) = Graph::build(8, |b| {
        let (x, slot) = b.input("x", Type::F32, [4, 1, 1, 1]);
        (slot, b.output(b.rms_norm(x, 1e-5)), b.input("unread", Type::F32, [4, 1, 1, 1]).1)
    });
    schedule.load(graph).unwrap();
    assert_panics("of another executor", || ignore(other.compute(&mut schedule, 1)));
    assert_panics("of another executor", || ignore(other.compute_traced(&mut schedule, 1)));
    assert_panics("1 to 512 threads", || ignore(executor.compute(&mut schedule, 0)));
    assert_panics("1 to 512 threads", || ignore(executor.compute(&mut schedule, 513)));
    assert_panics("set: element type", || schedule.set(x, &[0i32; 4]));
    assert_panics("set: size", || schedule.set(x, &[0.0f32; 3]));
    assert_panics("set: size", || schedule.set(x, &[0.0f32; 5]));
    assert_panics("set: the slot is not an input", || schedule.set(y, &[0.0f32; 4]));
    assert_panics("get: element type", || schedule.get(y, &mut [0i32; 4]));
    assert_panics("get: size", || schedule.get(y, &mut [0.0f32; 5]));
    assert_panics("get: the slot has no memory", || schedule.get(unread, &mut [0.0f32; 4]));
    // An input that nothing reads is not kept.
    schedule.set(unread, &[0.0f32; 4]);

    let foreign = Graph::build(16, |b| (0..9).map(|_| b.input("x", Type::F32, [4, 1, 1, 1]).1).last().unwrap()).1;
    assert_panics("the slot is of another graph", || schedule.set(foreign, &[0.0f32; 4]));
    assert_panics("up to 16 devices", || ignore(Executor::new(&[Device::cpu(); 16], Arc::default())));
}

#[test]
fn a_schedule_grows_with_its_graphs() {
    let mut executor = executor();
    let mut schedule = executor.schedule();
    // The largest has 6,001 tensors of its own and 6,000 of a store.
    for n in [1, 6000, 2] {
        let (store, ids) = factors(&vec![1.0; n]);
        let graph = || {
            Graph::build(n + 1, |b| {
                let (x, input) = b.input("x", Type::F32, [1, 1, 1, 1]);
                (input, b.output(ids.iter().fold(x, |sum, &id| b.add(sum, b.leaf(&store, id)))))
            })
        };
        assert!(total(schedule.measure(&graph().0)) > 0);
        schedule.reserve(&graph().0).unwrap();
        let (graph, (input, out)) = graph();
        schedule.load(graph).unwrap();
        schedule.set(input, &[0.5f32]);
        executor.compute(&mut schedule, 1).unwrap();
        let mut sum = [0.0f32];
        schedule.get(out, &mut sum);
        assert_eq!(sum, [n as f32 + 0.5]);
    }
}

#[test]
fn a_graph_may_be_inputs_and_tensors_of_stores_alone() {
    let (store, ids) = factors(&[1.0; 8]);
    // ggml keeps both in one list.
    let (graph, _) = Graph::build(8, |b| {
        for _ in 0..8 {
            b.expand(b.input("x", Type::F32, [1, 1, 1, 1]).0);
        }
        ids.iter().for_each(|&id| b.expand(b.leaf(&store, id)));
    });
    executor().schedule().load(graph).unwrap();
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let mut executor = executor();
    let mut schedule = executor.schedule();
    let (graph, (ids, longs, out)) = Graph::build(16, |b| {
        let (ids, ids_slot) = b.input("ids", Type::I32, [2, 1, 1, 1]);
        let (longs, longs_slot) = b.input("longs", Type::I64, [2, 1, 1, 1]);
        // The ids choose from 5 rows and from 4.
        let (few, many) = (f32s(b, [3, 4, 1, 1]), f32s(b, [3, 5, 1, 1]));
        let rows = b.add(b.get_rows(many, ids), b.get_rows(few, ids));
        (ids_slot, longs_slot, b.output(b.set_rows(f32s(b, [3, 7, 1, 1]), rows, longs)))
    });
    schedule.load(graph).unwrap();
    for wrong in [[0, 4], [-1, 0], [i32::MIN, i32::MAX]] {
        assert_panics("is not one of 4 rows", || schedule.set(ids, &wrong));
    }
    for wrong in [[0, 7], [-1, 0], [1i64 << 32, 0]] {
        assert_panics("is not one of 7 rows", || schedule.set(longs, &wrong));
    }
    // What was never set chooses the first row, and what was set is still there in the next run.
    executor.compute(&mut schedule, 2).unwrap();
    schedule.set(ids, &[3i32, 0]);
    schedule.set(longs, &[6i64, 0]);
    for _ in 0..3 {
        executor.compute(&mut schedule, 2).unwrap();
    }
    schedule.get(out, &mut [0.0f32; 21]);
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let mut executor = executor();
    let mut schedule = executor.schedule();
    // More than the addresses of a process.
    let huge = || Graph::build(8, |b| b.output(b.add(f32s(b, [1 << 44, 1, 1, 1]), f32s(b, [1 << 44, 1, 1, 1])))).0;
    assert!(total(schedule.measure(&huge())) >= 1 << 47);
    assert_eq!(schedule.reserve(&huge()), Err(ComputeError::OutOfMemory));
    assert_eq!(schedule.load(huge()), Err(ComputeError::OutOfMemory));
    assert_panics("a graph is loaded", || ignore(executor.compute(&mut schedule, 1)));
    // The schedule can be used again, with a graph that is like the one before but for its size, and with another.
    let small = Graph::build(8, |b| b.output(b.add(f32s(b, [1, 1, 1, 1]), f32s(b, [1, 1, 1, 1])))).0;
    schedule.load(small).unwrap();
    executor.compute(&mut schedule, 1).unwrap();
    let (store, ids) = factors(&[2.0]);
    let (graph, (x, _)) = times(&store, ids[0]);
    schedule.load(graph).unwrap();
    schedule.set(x, &[1.0f32]);
    executor.compute(&mut schedule, 1).unwrap();
}

/// Copies its source, and calls a function before that.
struct Call<F>(F);

impl<F: Fn() + Send + Sync> Op for Call<F> {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        (self.0)();
        while let Some(mut part) = parts.next() {
            for i in part.rows() {
                part.row::<f32>(i).copy_from_slice(sources[0].row(i));
            }
        }
    }
}

fn chain(n: usize, op: impl Fn(usize) + Send + Sync + Clone + 'static) -> (Graph, (Slot, Slot)) {
    Graph::build(n + 8, |b| {
        let (mut x, slot) = b.input("x", Type::F32, [1, 4, 1, 1]);
        for i in 0..n {
            let op = op.clone();
            x = b.custom(Type::F32, [1, 4, 1, 1], &[x], Call(move || op(i)));
        }
        (slot, b.output(x))
    })
}

#[test]
fn an_interrupt_ends_a_computation() {
    let interrupt = Arc::new(AtomicBool::new(false));
    let mut executor = Executor::new(&[], interrupt.clone()).unwrap();
    assert!(Arc::ptr_eq(executor.interrupt(), &interrupt));
    let after = Arc::new(AtomicBool::new(false));
    let mut schedule = executor.schedule();
    let (graph, (x, y)) = chain(8, {
        let (interrupt, after) = (interrupt.clone(), after.clone());
        move |i| match i {
            3 => interrupt.store(true, Ordering::Relaxed),
            7 => after.store(true, Ordering::Relaxed),
            _ => (),
        }
    });
    schedule.load(graph).unwrap();
    for n_threads in [1, 2] {
        interrupt.store(false, Ordering::Relaxed);
        schedule.set(x, &[1.0f32; 4]);
        assert_eq!(executor.compute(&mut schedule, n_threads), Err(ComputeError::Interrupted));
        assert!(!after.load(Ordering::Relaxed));
    }
    // The next computation is whole again.
    let (graph, (x, y2)) = chain(8, |_| ());
    schedule.load(graph).unwrap();
    assert_eq!(y, y2);
    interrupt.store(false, Ordering::Relaxed);
    schedule.set(x, &[1.0f32, 2.0, 3.0, 4.0]);
    executor.compute(&mut schedule, 2).unwrap();
    let mut got = [0.0f32; 4];
    schedule.get(y, &mut got);
    assert_eq!(got, [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn progress_is_of_the_graph_that_runs() {
    let mut executor = executor();
    assert_eq!(executor.progress()(), 0.0);
    let shares = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut loaded: Vec<_> = [4, 8]
        .into_iter()
        .map(|n| {
            let (progress, shares) = (Arc::new(std::sync::Mutex::new(executor.progress())), shares.clone());
            let (graph, (x, _)) = chain(n, move |_| shares.lock().unwrap().push(progress.lock().unwrap()()));
            let mut schedule = executor.schedule();
            schedule.load(graph).unwrap();
            (n, schedule, x)
        })
        .collect();
    for (n, schedule, x) in loaded.iter_mut().rev() {
        schedule.set(*x, &[0.0f32; 4]);
        executor.compute(schedule, 1).unwrap();
        let shares = std::mem::take(&mut *shares.lock().unwrap());
        let expected: Vec<f64> = (0..*n).map(|i| i as f64 / *n as f64).collect();
        assert_eq!(shares, expected);
        assert_eq!(executor.progress()(), 1.0);
    }
    // Threads that sleep are woken, and another number of them is started anew.
    executor.pause();
    for n_threads in [1, 2, 2, 3, 1] {
        executor.compute(&mut loaded[0].1, n_threads).unwrap();
        executor.pause();
    }
}

#[test]
fn a_panic_in_an_operation_comes_out_of_compute() {
    let mut executor = executor();
    let mut schedule = executor.schedule();
    let (graph, _) = chain(3, |i| assert!(i != 1));
    schedule.load(graph).unwrap();
    for n_threads in [1, 2] {
        assert_panics("operation of the program's own panicked", || ignore(executor.compute(&mut schedule, n_threads)));
        assert_panics("operation of the program's own", || ignore(executor.compute_traced(&mut schedule, n_threads)));
    }
    // The executor and the schedule go on.
    let (graph, _) = chain(3, |_| ());
    schedule.load(graph).unwrap();
    executor.compute(&mut schedule, 2).unwrap();
}

#[test]
fn a_trace_has_the_nodes() {
    let mut executor = executor();
    let mut schedule = executor.schedule();
    let (graph, (x, y)) = Graph::build(16, |b| {
        let (x, slot) = b.input("x", Type::F32, [2, 2, 1, 1]);
        let norm = b.rms_norm(b.reshape(x, [4, 1, 1, 1]), 0.0);
        b.name(norm, "norm");
        let sum = b.add(norm, norm);
        b.name(sum, "sum");
        (slot, b.output(sum))
    });
    schedule.load(graph).unwrap();
    schedule.set(x, &[2.0f32; 4]);
    let nodes = executor.compute_traced(&mut schedule, 2).unwrap();
    let nodes: Vec<_> = nodes.iter().map(|n| (&*n.name, &*n.op, n.ne, n.finite)).collect();
    assert_eq!(nodes, [("norm", "RMS_NORM", [4, 1, 1, 1], true), ("sum", "ADD", [4, 1, 1, 1], true)]);
    let mut got = [0.0f32; 4];
    schedule.get(y, &mut got);
    assert_eq!(got, [2.0; 4]);
    schedule.set(x, &[0.0f32; 4]);
    assert!(!executor.compute_traced(&mut schedule, 2).unwrap()[0].finite);
}

#[test]
fn outputs_of_mapped_tensors_cannot_be_set() {
    let map = Arc::new(ggml::Map::of(&bytes(&[1.0, 2.0])).unwrap());
    let mut specs = Specs::new();
    let id = specs.push(spec(Type::F32, [2, 1, 1, 1], Place::Mapped(Device::cpu(), 0, 0)));
    let store = Rc::new(Store::new(specs, vec![map]).unwrap());
    let mut schedule = executor().schedule();
    let (graph, slot) = Graph::build(8, |b| b.output(b.leaf(&store, id)));
    schedule.load(graph).unwrap();
    assert_panics("set: the slot is not an input", || schedule.set(slot, &[0.0f32; 2]));
    let mut got = [0.0f32; 2];
    schedule.get(slot, &mut got);
    assert_eq!(got, [1.0, 2.0]);
}
