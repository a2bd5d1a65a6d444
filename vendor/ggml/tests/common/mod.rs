//! What the tests share.
#![allow(dead_code, reason = "each test uses some of it")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ggml::{BufferType, Builder, Device, Executor, Graph, Place, Specs, Store, Tensor, TensorId, TensorSpec, Type};

/// The message that `f` panics with; none if it returns.
pub fn panic_of(f: impl FnOnce()) -> Option<String> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
    Some(text.or_else(|| payload.downcast_ref::<String>().cloned()).expect("a panic with a text"))
}

/// For results that nobody reads, as a call that returns nothing.
pub fn ignore<T>(_: T) {}

/// Fails unless `f` panics with a message that has `expected` in it.
#[track_caller]
pub fn assert_panics(expected: &str, f: impl FnOnce()) {
    let message = panic_of(f).unwrap_or_else(|| panic!("no panic, expected '{expected}'"));
    assert!(message.contains(expected), "'{message}', expected '{expected}'");
}

/// A case of a table of graphs that cannot be built, and what the panic's message has in it.
pub type Violation = (&'static str, for<'g> fn(&Builder<'g>));

pub fn assert_violations(table: &[Violation]) {
    for (i, (expected, f)) in table.iter().enumerate() {
        let message = panic_of(|| ignore(Graph::build(64, f)));
        let message = message.unwrap_or_else(|| panic!("case {i}: no panic, expected '{expected}'"));
        assert!(message.contains(expected), "case {i}: '{message}', expected '{expected}'");
    }
}

pub fn executor() -> Executor {
    Executor::new(&[], Arc::new(AtomicBool::new(false))).expect("threads")
}

/// An input of the graph.
pub fn input<'g>(b: &Builder<'g>, ty: Type, ne: [usize; 4]) -> Tensor<'g> {
    b.input("x", ty, ne).0
}

pub fn f32s<'g>(b: &Builder<'g>, ne: [usize; 4]) -> Tensor<'g> {
    input(b, Type::F32, ne)
}

pub fn cpu() -> BufferType {
    Device::cpu().buffer_type()
}

pub fn spec(ty: Type, ne: [u64; 4], place: Place) -> TensorSpec {
    TensorSpec { name: "t".into(), ty, ne, place }
}

/// A store of tensors of zeros in the CPU's memory.
pub fn zeros(tensors: &[(Type, [u64; 4])]) -> (Rc<Store>, Vec<TensorId>) {
    let mut specs = Specs::new();
    let ids: Vec<_> = tensors.iter().map(|&(ty, ne)| specs.push(spec(ty, ne, Place::Buffer(cpu())))).collect();
    let store = Store::new(specs, Vec::new()).expect("memory");
    ids.iter().for_each(|&id| store.zero(id, 0, store.n_bytes(id)));
    (Rc::new(store), ids)
}

/// All types that this ggml has.
pub fn all_types() -> Vec<Type> {
    (0..64).filter_map(Type::from_id).collect()
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
