//! Building graphs.
//!
//! [`Graph::build`] hands a [`Builder`] to a closure. The tensors that the builder's operations return carry its brand, a
//! lifetime that no other builder has: tensors of different graphs cannot be mixed, and none outlives its graph. What the
//! caller keeps are [`Slot`]s: inputs to set and outputs to get.
//!
//! Shapes are in ggml's order `[ne0, ne1, ne2, ne3]`, of which the elements along `ne0` are neighbours in memory. A row is
//! what lies along the first dimension. Every operation checks the types, shapes and strides that ggml's kernels for the CPU
//! ask for, and panics with its own name where ggml would end the process: what it documents of its arguments is what it
//! checks.
//!
//! Each graph has its own brand:
//! ```compile_fail,E0521
//! use ggml::{Graph, Type};
//! Graph::build(8, |one| {
//!     let (x, _) = one.input("x", Type::F32, [4, 1, 1, 1]);
//!     Graph::build(8, |other| other.output(x));
//! });
//! ```
//! and its tensors stay in the closure:
//! ```compile_fail
//! use ggml::{Graph, Type};
//! let (graph, x) = Graph::build(8, |b| b.input("x", Type::F32, [4, 1, 1, 1]).0);
//! ```
//! as opposed to its slots:
//! ```
//! use ggml::{Graph, Type};
//! let (graph, x) = Graph::build(8, |b| b.input("x", Type::F32, [4, 1, 1, 1]).1);
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::rc::Rc;

use llama_cpp_sys_2 as sys;

use crate::custom::{self, Custom, Op};
use crate::quantize::can_dequantize;
use crate::store::{Store, TensorId};
use crate::types::Type;

/// Owner of tensor headers.
#[derive(Debug)]
pub(crate) struct Context {
    ptr: NonNull<sys::ggml_context>,
}

impl Context {
    /// A context for the headers of `n` tensors, and `more` bytes.
    fn new(n: usize, more: usize) -> Context {
        // SAFETY: returns a constant.
        let overhead = unsafe { sys::ggml_tensor_overhead() };
        let bytes = overhead.checked_mul(n + 1).and_then(|b| b.checked_add(more)).expect("few tensors");
        let params = sys::ggml_init_params { mem_size: bytes, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        // SAFETY: the parameters are valid; ggml allocates the memory itself.
        let ptr = unsafe { sys::ggml_init(params) };
        Context { ptr: NonNull::new(ptr).expect("memory for tensor headers") }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_context {
        self.ptr.as_ptr()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this owner made the context and frees it once.
        unsafe { sys::ggml_free(self.ptr.as_ptr()) }
    }
}

/// A context for up to `n` tensors and no graph.
pub(crate) fn init_context(n: usize) -> Context {
    Context::new(n, 0)
}

/// An input or output of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(usize);

/// A graph that is ready to run. Keeps the stores alive that its tensors are in.
#[derive(Debug)]
pub struct Graph {
    graph: NonNull<sys::ggml_cgraph>,
    _context: Context,
    n_tensors: usize,
    /// How many rows there are to choose from, of the inputs that choose rows.
    row_limits: HashMap<NonNull<sys::ggml_tensor>, usize>,
    slots: Vec<NonNull<sys::ggml_tensor>>,
    // Boxed: nodes of the graph point to them.
    #[allow(clippy::vec_box, reason = "addresses must not change")]
    ops: Vec<Box<Custom>>,
    stores: Vec<Rc<Store>>,
}

/// More tensors than any graph has, and few enough for every number that ggml computes from it.
const MOST_TENSORS: usize = 1 << 20;

/// Whether an operation has anything to compute.
pub(crate) fn computes(op: sys::ggml_op) -> bool {
    !matches!(
        op,
        sys::GGML_OP_NONE | sys::GGML_OP_RESHAPE | sys::GGML_OP_VIEW | sys::GGML_OP_PERMUTE | sys::GGML_OP_TRANSPOSE
    )
}

/// Makes the tensors of one graph.
///
/// Shapes are in ggml's order `[ne0, ne1, ne2, ne3]`; a row is what lies along the first dimension. Every operation panics with
/// its own name if its arguments are not as it documents.
#[derive(Debug)]
pub struct Builder<'g> {
    context: Context,
    graph: NonNull<sys::ggml_cgraph>,
    /// How many tensors can still be made, and how many there can be.
    room: Cell<usize>,
    max_tensors: usize,
    /// Tensors of stores that were used.
    leaves: RefCell<HashSet<NonNull<sys::ggml_tensor>>>,
    /// Those of them that only `mul_mat` reads, as its first matrix.
    packed: RefCell<HashSet<NonNull<sys::ggml_tensor>>>,
    row_limits: RefCell<HashMap<NonNull<sys::ggml_tensor>, usize>>,
    slots: RefCell<Vec<NonNull<sys::ggml_tensor>>>,
    #[allow(clippy::vec_box, reason = "addresses must not change")]
    ops: RefCell<Vec<Box<Custom>>>,
    stores: RefCell<Vec<Rc<Store>>>,
    brand: PhantomData<fn(&'g ()) -> &'g ()>,
}

/// A tensor of the graph under construction.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'g> {
    ptr: NonNull<sys::ggml_tensor>,
    brand: PhantomData<fn(&'g ()) -> &'g ()>,
}

/// Settings of rotary position embedding, as `ggml_rope_ext` takes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Number of dimensions rotated.
    pub n_dims: u32,
    /// Pairs are neighbours (`false`) or half the dimensions apart (`true`).
    pub neox: bool,
    /// Context length of the training before YaRN.
    pub n_ctx_orig: u32,
    /// Base of the frequencies.
    pub freq_base: f32,
    /// Factor on positions.
    pub freq_scale: f32,
    /// YaRN: share of extrapolation.
    pub ext_factor: f32,
    /// YaRN: factor on the magnitude.
    pub attn_factor: f32,
    /// YaRN: correction range, high frequencies.
    pub beta_fast: f32,
    /// YaRN: correction range, low frequencies.
    pub beta_slow: f32,
}

impl Graph {
    /// Whether it has tensors without memory.
    pub(crate) fn is_sketch(&self) -> bool {
        self.stores.iter().any(|store| store.is_sketch())
    }

    /// Builds a graph of up to `max_tensors` tensors, counting views and inputs, and up to as many tensors of stores.
    /// Returns it with what `f` returns.
    ///
    /// # Panics
    /// If `max_tensors` is above a million, or if `f` makes more tensors or uses more tensors of stores.
    pub fn build<R>(max_tensors: usize, f: impl for<'g> FnOnce(&Builder<'g>) -> R) -> (Graph, R) {
        assert!(max_tensors <= MOST_TENSORS, "a graph of {max_tensors} tensors: ggml counts them in 32 bits");
        // ggml counts inputs and tensors of stores together.
        let size = 2 * max_tensors;
        // SAFETY: returns a size computed from the number.
        let overhead = unsafe { sys::ggml_graph_overhead_custom(size, false) };
        let context = Context::new(max_tensors, overhead);
        // SAFETY: the context is live and has room for the graph.
        let graph = unsafe { sys::ggml_new_graph_custom(context.as_ptr(), size, false) };
        let builder = Builder {
            graph: NonNull::new(graph).expect("the context has room for the graph"),
            context,
            room: Cell::new(max_tensors),
            max_tensors,
            leaves: RefCell::default(),
            packed: RefCell::default(),
            row_limits: RefCell::default(),
            slots: RefCell::default(),
            ops: RefCell::default(),
            stores: RefCell::default(),
            brand: PhantomData,
        };
        let result = f(&builder);
        let n_tensors = max_tensors - builder.room.get() + builder.leaves.borrow().len();
        let Builder { context, graph, slots, ops, stores, row_limits, .. } = builder;
        let (slots, ops, stores) = (slots.into_inner(), ops.into_inner(), stores.into_inner());
        let row_limits = row_limits.into_inner();
        (Graph { graph, _context: context, n_tensors, row_limits, slots, ops, stores }, result)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_cgraph {
        self.graph.as_ptr()
    }

    /// Number of nodes that compute something.
    pub(crate) fn n_operations(&self) -> usize {
        // SAFETY: the nodes are live with the graph.
        self.nodes().iter().filter(|n| computes(unsafe { n.as_ref() }.op)).count()
    }

    /// Number of tensors: those made for the graph, and those of stores.
    pub(crate) fn n_tensors(&self) -> usize {
        self.n_tensors
    }

    /// Whether an operation of the caller's panicked.
    pub(crate) fn op_failed(&self) -> bool {
        self.ops.iter().any(|op| op.failed())
    }

    pub(crate) fn slot(&self, slot: Slot) -> NonNull<sys::ggml_tensor> {
        *self.slots.get(slot.0).expect("the slot is of another graph")
    }

    /// How many rows there are to choose from, if the tensor is an input that chooses rows.
    pub(crate) fn row_limit(&self, tensor: NonNull<sys::ggml_tensor>) -> Option<usize> {
        self.row_limits.get(&tensor).copied()
    }

    /// The inputs that choose rows.
    pub(crate) fn row_ids(&self) -> impl Iterator<Item = NonNull<sys::ggml_tensor>> {
        self.row_limits.keys().copied()
    }

    /// Lets `f` give the graph to a scheduler, and undoes what that changed in it. Where a node reads what another device
    /// computed, a scheduler replaces the source by a copy of its own, which it overwrites when it splits the next graph.
    pub(crate) fn lend<R>(&self, f: impl FnOnce(*mut sys::ggml_cgraph) -> R) -> R {
        let nodes = self.nodes();
        // SAFETY: the nodes are live with the graph, and nothing else refers to them now.
        let sources: Vec<_> = nodes.iter().map(|n| unsafe { n.as_ref() }.src).collect();
        let result = f(self.graph.as_ptr());
        for (mut node, sources) in nodes.into_iter().zip(sources) {
            // SAFETY: as above; `f` is over.
            unsafe { node.as_mut() }.src = sources;
        }
        result
    }

    fn nodes(&self) -> Vec<NonNull<sys::ggml_tensor>> {
        // SAFETY: the graph is live.
        let n = unsafe { sys::ggml_graph_n_nodes(self.graph.as_ptr()) };
        // SAFETY: the graph is live and has n nodes.
        let node = |i| unsafe { sys::ggml_graph_node(self.graph.as_ptr(), i) };
        (0..n).map(|i| NonNull::new(node(i)).expect("nodes are tensors")).collect()
    }
}

impl<'g> Tensor<'g> {
    fn raw(&self) -> &sys::ggml_tensor {
        // SAFETY: the brand ties the tensor to a builder whose context (or store) is alive.
        unsafe { self.ptr.as_ref() }
    }

    fn as_ptr(self) -> *mut sys::ggml_tensor {
        self.ptr.as_ptr()
    }

    pub fn ne(&self) -> [usize; 4] {
        self.raw().ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// Strides in bytes.
    pub fn nb(&self) -> [usize; 4] {
        self.raw().nb
    }

    pub fn ty(&self) -> Type {
        Type::from_id(self.raw().type_).expect("tensors have types of this ggml")
    }

    pub fn n_elements(&self) -> usize {
        self.ne().iter().product()
    }

    fn n_bytes(&self) -> usize {
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_nbytes(self.as_ptr()) }
    }

    /// Whether the memory that a tensor of a store is in wants more bytes for it than it has, which kernels read beyond its end (CUDA's, of
    /// rows that are no multiple of 512 elements). `false` of a tensor without memory.
    pub fn is_padded(&self) -> bool {
        let root = self.root();
        if root.buffer.is_null() {
            return false;
        }
        // SAFETY: the buffer is live with its tensor.
        let kind = unsafe { sys::ggml_backend_buffer_get_type(root.buffer) };
        // SAFETY: buffer type and tensor are live.
        let wanted = unsafe { sys::ggml_backend_buft_get_alloc_size(kind, std::ptr::from_ref(root)) };
        // SAFETY: the tensor is live.
        wanted > unsafe { sys::ggml_nbytes(root) }
    }

    fn is_contiguous(&self) -> bool {
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_is_contiguous(self.as_ptr()) }
    }

    /// Whether the elements of each row are neighbours, and the rows lie one after the other at equal distances.
    fn rows_are_even(&self) -> bool {
        // SAFETY: the tensor is live.
        self.rows_are_contiguous() && unsafe { sys::ggml_is_contiguous_1(self.as_ptr()) }
    }

    fn rows_are_contiguous(&self) -> bool {
        self.raw().nb[0] == self.ty().block_bytes()
    }

    /// The tensor that this one is a view of, or itself.
    fn root(&self) -> &sys::ggml_tensor {
        // SAFETY: the tensor that a view is of lives as long as the view.
        unsafe { self.raw().view_src.as_ref() }.unwrap_or(self.raw())
    }

    fn is_input(&self) -> bool {
        self.raw().flags & sys::GGML_TENSOR_FLAG_INPUT as i32 != 0
    }
}

fn int(n: usize) -> i64 {
    i64::try_from(n).expect("dimensions fit in i64")
}

/// What operations on each element of a tensor ask for.
fn assert_unary(name: &str, a: Tensor) {
    assert!(a.ty() == Type::F32, "{name}: type {:?}", a.ty());
    assert!(a.is_contiguous(), "{name}: the tensor is not contiguous");
}

/// What products with an activation ask for.
fn assert_gated(name: &str, gate: Tensor, up: Tensor) {
    let floats = [Type::F32, Type::F16, Type::BF16].contains(&gate.ty());
    assert!(floats && gate.ty() == up.ty(), "{name}: types {:?} and {:?}", gate.ty(), up.ty());
    assert!(gate.ne() == up.ne(), "{name}: shapes {:?} and {:?}", gate.ne(), up.ne());
    assert!(gate.rows_are_even() && up.rows_are_even(), "{name}: the rows are not one after the other");
}

/// Asserts what element by element operations ask for: `a` of floats in contiguous rows, `b` of the same type or F32, and
/// a shape of `b` that goes into that of `a` a whole number of times.
fn assert_elementwise(operation: &str, a: Tensor, b: Tensor) {
    let floats = [Type::F32, Type::F16, Type::BF16].contains(&a.ty());
    assert!(floats && [a.ty(), Type::F32].contains(&b.ty()), "{operation}: types {:?} and {:?}", a.ty(), b.ty());
    let repeats = a.ne().iter().zip(b.ne()).all(|(a, b)| a.is_multiple_of(b));
    assert!(repeats, "{operation}: {:?} does not repeat to {:?}", b.ne(), a.ne());
    assert!(a.rows_are_contiguous(), "{operation}: the rows are not contiguous");
}

impl<'g> Builder<'g> {
    fn ctx(&self) -> *mut sys::ggml_context {
        self.context.as_ptr()
    }

    /// Takes the room of one tensor.
    fn take(&self) {
        let room = self.room.get();
        assert!(room > 0, "the graph has more tensors than it was made for");
        self.room.set(room - 1);
    }

    fn wrap(&self, ptr: *mut sys::ggml_tensor) -> Tensor<'g> {
        self.take();
        let t = Tensor { ptr: NonNull::new(ptr).expect("ggml returns a tensor or aborts"), brand: PhantomData };
        // The first matrix of mul_mat may be packed, and several of mul_mat_id.
        let is_stack = t.raw().src.first().and_then(|&s| NonNull::new(s)).is_some_and(|s| {
            // SAFETY: the sources of a live tensor are live.
            unsafe { s.as_ref() }.ne[2] > 1
        });
        let op = t.raw().op;
        let first = usize::from(if is_stack { op == sys::GGML_OP_MUL_MAT_ID } else { op == sys::GGML_OP_MUL_MAT });
        let packed = t.raw().src[first..].iter().any(|&s| NonNull::new(s).is_some_and(|s| self.is_packed(s)));
        if packed {
            // SAFETY: the tensor is live; the name of its operation is a constant.
            let op = unsafe { CStr::from_ptr(sys::ggml_op_desc(t.as_ptr())) }.to_string_lossy().to_lowercase();
            panic!("{op}: a tensor is in a layout that only mul_mat reads");
        }
        t
    }

    fn is_packed(&self, tensor: NonNull<sys::ggml_tensor>) -> bool {
        self.packed.borrow().contains(&tensor)
    }

    /// Notes that `ids` chooses among `n_rows` rows. ggml's kernels end the process on a number that is no row: those of an
    /// input are checked when it is set.
    fn choose_rows(&self, ids: Tensor<'g>, n_rows: usize) {
        if !ids.is_input() {
            return;
        }
        let mut limits = self.row_limits.borrow_mut();
        let limit = limits.entry(ids.ptr).or_insert(n_rows);
        *limit = n_rows.min(*limit);
        // Its memory is not used for results then, so that it holds numbers of rows in each computation.
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_set_output(ids.as_ptr()) };
    }

    fn slot(&self, t: Tensor<'g>) -> Slot {
        let mut slots = self.slots.borrow_mut();
        slots.push(t.ptr);
        Slot(slots.len() - 1)
    }

    /// A tensor that is set before each computation.
    pub fn input(&self, name: &str, ty: Type, ne: [usize; 4]) -> (Tensor<'g>, Slot) {
        assert!(ty.n_bytes(ne).is_some(), "input {name}: shape {ne:?} of {ty:?}");
        let ne = ne.map(int);
        // SAFETY: the context is live and has room (checked by `wrap` for the next one, with one spare).
        let t = self.wrap(unsafe { sys::ggml_new_tensor(self.ctx(), ty.raw(), 4, ne.as_ptr()) });
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_set_input(t.as_ptr()) };
        self.name(t, name);
        (t, self.slot(t))
    }

    /// Marks a result that is read after each computation.
    ///
    /// # Panics
    /// If it is a tensor of a store in a layout of its own (see [`Store::read`]).
    pub fn output(&self, t: Tensor<'g>) -> Slot {
        assert!(!self.is_packed(t.ptr), "output: the tensor is in a layout of its own");
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_set_output(t.as_ptr()) };
        self.expand(t);
        self.slot(t)
    }

    /// A weight or cache tensor.
    ///
    /// # Panics
    /// If the tensor is of another store, or the graph has more tensors of stores than it was made for.
    pub fn leaf(&self, store: &Rc<Store>, id: TensorId) -> Tensor<'g> {
        let ptr = store.leaf(id);
        let mut leaves = self.leaves.borrow_mut();
        leaves.insert(ptr);
        assert!(leaves.len() <= self.max_tensors, "leaf: the graph has more tensors of stores than it was made for");
        let mut stores = self.stores.borrow_mut();
        if !stores.iter().any(|s| Rc::ptr_eq(s, store)) {
            stores.push(store.clone());
        }
        if store.is_packed(id) {
            self.packed.borrow_mut().insert(ptr);
        }
        Tensor { ptr, brand: PhantomData }
    }

    /// Adds the operations that `t` needs, and `t`, to the graph, in this order.
    pub fn expand(&self, t: Tensor<'g>) {
        // SAFETY: graph and tensor are of this builder.
        unsafe { sys::ggml_build_forward_expand(self.graph.as_ptr(), t.as_ptr()) }
    }

    /// Names a tensor in dumps; at most 63 bytes are kept.
    ///
    /// # Panics
    /// If there is a NUL in the name.
    pub fn name(&self, t: Tensor<'g>, name: &str) {
        let name = CString::new(name).expect("name: a NUL");
        // SAFETY: the tensor is live; ggml copies at most 63 bytes.
        unsafe { sys::ggml_set_name(t.as_ptr(), name.as_ptr()) };
    }

    /// `[ne0, n_ids, k, 1]`: the rows `ids` (I32 `[n_ids, k, 1, 1]`) of the `k` matrices `a` `[ne0, ne1, k, 1]`, as F32; I32
    /// matrices stay I32.
    ///
    /// Numbers that an input holds are checked when it is set. Where the graph computes them, they must be below `ne1`: ggml
    /// ends the process otherwise.
    pub fn get_rows(&self, a: Tensor<'g>, ids: Tensor<'g>) -> Tensor<'g> {
        assert!(a.ty() == Type::I32 || can_dequantize(a.ty()), "get_rows: type {:?}", a.ty());
        let [_, _, k, last] = a.ne();
        assert!(last == 1 && a.rows_are_contiguous(), "get_rows: of {:?} {:?}", a.ne(), a.nb());
        assert!(ids.ty() == Type::I32 && ids.ne()[1..] == [k, 1, 1], "get_rows: ids {:?} {:?}", ids.ty(), ids.ne());
        let ne = [a.ne()[0], ids.ne()[0], k, 1];
        assert!(Type::F32.n_bytes(ne).is_some(), "get_rows: result {ne:?}");
        self.choose_rows(ids, a.ne()[1]);
        // SAFETY: matrices and the numbers of rows of each, of this graph.
        self.wrap(unsafe { sys::ggml_get_rows(self.ctx(), a.as_ptr(), ids.as_ptr()) })
    }

    /// F32 `[a.ne1, x.ne1, x.ne2, x.ne3]`: the products of the rows of `a` `[n, ..]` and of `x` `[n, ..]`. `a` is repeated
    /// over ne2 and ne3. `x` is F32, or of the type that ggml converts it to for `a`'s.
    pub fn mul_mat(&self, a: Tensor<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let (m, n) = (a.ne(), x.ne());
        assert!(
            m[0] == n[0] && n[2].is_multiple_of(m[2]) && n[3].is_multiple_of(m[3]),
            "mul_mat: shapes {m:?} and {n:?}"
        );
        assert!(a.ty().multiplies(x.ty()), "mul_mat: types {:?} and {:?}", a.ty(), x.ty());
        assert!(!self.is_packed(a.ptr) || x.ty() == Type::F32, "mul_mat: type {:?} with a packed weight", x.ty());
        assert!(
            a.rows_are_contiguous() && a.nb()[0] <= a.nb()[1] && x.rows_are_contiguous(),
            "mul_mat: the rows are not contiguous"
        );
        let ne = [m[1], n[1], n[2], n[3]];
        assert!(Type::F32.n_bytes(ne).is_some(), "mul_mat: result {ne:?}");
        // SAFETY: the shapes are as ggml_can_mul_mat asks.
        self.wrap(unsafe { sys::ggml_mul_mat(self.ctx(), a.as_ptr(), x.as_ptr()) })
    }

    /// F32 `[a.ne1, n_used, n_tokens, 1]`: the products of `x` F32 `[k, 1 or n_used, n_tokens, 1]` with some of the matrices of `a`
    /// `[k, m, n_matrices, 1]`: of each token with those that `ids` I32 `[n_used, n_tokens, 1, 1]` names. All are contiguous; of `ids` the rows.
    ///
    /// Numbers of matrices that the graph computes must be below `n_matrices`: ggml ends the process otherwise.
    pub fn mul_mat_id(&self, a: Tensor<'g>, x: Tensor<'g>, ids: Tensor<'g>) -> Tensor<'g> {
        let (m, n, i) = (a.ne(), x.ne(), ids.ne());
        assert!(
            m[0] == n[0] && m[3] == 1 && n[3] == 1 && n[2] == i[1] && [1, i[0]].contains(&n[1]) && i[2..] == [1, 1],
            "mul_mat_id: shapes {m:?}, {n:?} and {i:?}"
        );
        let types = [a.ty(), x.ty(), ids.ty()];
        assert!(types[1..] == [Type::F32, Type::I32] && a.ty().multiplies(Type::F32), "mul_mat_id: types {types:?}");
        let contiguous = [a, x].iter().all(|t| t.is_contiguous()) && ids.rows_are_contiguous();
        assert!(contiguous, "mul_mat_id: a tensor is not contiguous");
        let ne = [m[1], i[0], i[1], 1];
        assert!(Type::F32.n_bytes(ne).is_some(), "mul_mat_id: result {ne:?}");
        self.choose_rows(ids, m[2]);
        // SAFETY: the shapes and types are as ggml asks.
        self.wrap(unsafe { sys::ggml_mul_mat_id(self.ctx(), a.as_ptr(), x.as_ptr(), ids.as_ptr()) })
    }

    /// `x` F32 `[n, n_used, n_tokens, 1]` and, added to each row, one of the rows of `a` F32 `[n, n_rows, 1, 1]`: the one that `ids` I32
    /// `[n_used, n_tokens, 1, 1]` names. All are contiguous; of `ids` the rows.
    ///
    /// Numbers of rows that the graph computes must be below `n_rows`: ggml ends the process otherwise.
    pub fn add_id(&self, x: Tensor<'g>, a: Tensor<'g>, ids: Tensor<'g>) -> Tensor<'g> {
        let (n, m, i) = (x.ne(), a.ne(), ids.ne());
        assert!(n == [m[0], i[0], i[1], 1] && m[2..] == [1, 1] && i[2..] == [1, 1], "add_id: {n:?}, {m:?} and {i:?}");
        let types = [x.ty(), a.ty(), ids.ty()];
        assert!(types == [Type::F32, Type::F32, Type::I32], "add_id: types {types:?}");
        let contiguous = [x, a].iter().all(|t| t.is_contiguous()) && ids.rows_are_contiguous();
        assert!(contiguous, "add_id: a tensor is not contiguous");
        self.choose_rows(ids, m[1]);
        // SAFETY: the shapes and types are as ggml asks.
        self.wrap(unsafe { sys::ggml_add_id(self.ctx(), x.as_ptr(), a.as_ptr(), ids.as_ptr()) })
    }

    /// `x` (F32) multiplied, in runs of `n` elements, with the symmetric Hadamard matrix `rot` (F32 `[n, n, 1, 1]`, of which
    /// `n` is a power of two). Same shape as `x`.
    pub fn mul_mat_hadamard(&self, x: Tensor<'g>, rot: Tensor<'g>) -> Tensor<'g> {
        let n = rot.ne()[0];
        let ne = x.ne();
        assert!(n.is_power_of_two() && rot.ne() == [n, n, 1, 1], "mul_mat_hadamard: matrix {:?}", rot.ne());
        assert!(x.n_elements().is_multiple_of(n), "mul_mat_hadamard: {ne:?} in runs of {n}");
        let types = [x.ty(), rot.ty()];
        assert!(types == [Type::F32; 2], "mul_mat_hadamard: types {types:?}");
        let runs = x.n_elements() / n;
        let flat = if x.is_contiguous() { self.reshape(x, [n, runs, 1, 1]) } else { self.cont(x, [n, runs, 1, 1]) };
        let res = self.mul_mat(rot, flat);
        // SAFETY: res is a mul_mat node.
        unsafe { sys::ggml_mul_mat_set_hint(res.as_ptr(), sys::GGML_HINT_SRC0_IS_HADAMARD) };
        self.reshape(res, ne)
    }

    /// `a + b`, of `a`'s type and shape. `a` is F32, F16 or BF16; `b`, of the same type or F32, is repeated to `a`'s shape.
    pub fn add(&self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        assert_elementwise("add", a, b);
        // SAFETY: b repeats to a's shape, and ggml has a kernel for the types.
        self.wrap(unsafe { sys::ggml_add(self.ctx(), a.as_ptr(), b.as_ptr()) })
    }

    /// `a * b` element by element, of `a`'s type and shape. `a` is F32, F16 or BF16; `b`, of the same type or F32, is
    /// repeated to `a`'s shape.
    pub fn mul(&self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        assert_elementwise("mul", a, b);
        // SAFETY: b repeats to a's shape, and ggml has a kernel for the types.
        self.wrap(unsafe { sys::ggml_mul(self.ctx(), a.as_ptr(), b.as_ptr()) })
    }

    /// `a - b` element by element, of tensors as [`Builder::mul`] takes them.
    pub fn sub(&self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        assert_elementwise("sub", a, b);
        // SAFETY: b repeats to a's shape, and ggml has a kernel for the types.
        self.wrap(unsafe { sys::ggml_sub(self.ctx(), a.as_ptr(), b.as_ptr()) })
    }

    /// `a / b` element by element, of tensors as [`Builder::mul`] takes them.
    pub fn div(&self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        assert_elementwise("div", a, b);
        // SAFETY: b repeats to a's shape, and ggml has a kernel for the types.
        self.wrap(unsafe { sys::ggml_div(self.ctx(), a.as_ptr(), b.as_ptr()) })
    }

    /// Each row of `a` (F32) divided by its root mean square: `x / sqrt(mean(x * x) + eps)`.
    pub fn rms_norm(&self, a: Tensor<'g>, eps: f32) -> Tensor<'g> {
        assert!(eps >= 0.0, "rms_norm: eps {eps}");
        assert!(a.ty() == Type::F32, "rms_norm: type {:?}", a.ty());
        assert!(a.rows_are_contiguous(), "rms_norm: the rows are not contiguous");
        // SAFETY: an F32 tensor of this graph with contiguous rows.
        self.wrap(unsafe { sys::ggml_rms_norm(self.ctx(), a.as_ptr(), eps) })
    }

    /// Each row of `a` (F32) less its mean, divided by its standard deviation: `(x - mean(x)) / sqrt(variance(x) + eps)`.
    pub fn layer_norm(&self, a: Tensor<'g>, eps: f32) -> Tensor<'g> {
        assert!(eps >= 0.0, "layer_norm: eps {eps}");
        assert!(a.ty() == Type::F32, "layer_norm: type {:?}", a.ty());
        assert!(a.rows_are_contiguous(), "layer_norm: the rows are not contiguous");
        // SAFETY: an F32 tensor of this graph with contiguous rows.
        self.wrap(unsafe { sys::ggml_norm(self.ctx(), a.as_ptr(), eps) })
    }

    /// `s * a`, of a contiguous F32 tensor.
    pub fn scale(&self, a: Tensor<'g>, s: f32) -> Tensor<'g> {
        assert_unary("scale", a);
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_scale(self.ctx(), a.as_ptr(), s) })
    }

    /// `s * a + b`, of a contiguous F32 tensor.
    pub fn scale_and_shift(&self, a: Tensor<'g>, s: f32, b: f32) -> Tensor<'g> {
        assert_unary("scale_and_shift", a);
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_scale_bias(self.ctx(), a.as_ptr(), s, b) })
    }

    /// `tanh(a)`, of a contiguous F32 tensor.
    pub fn tanh(&self, a: Tensor<'g>) -> Tensor<'g> {
        assert_unary("tanh", a);
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_tanh(self.ctx(), a.as_ptr()) })
    }

    /// `max(a, 0)`, of a contiguous F32 tensor.
    pub fn relu(&self, a: Tensor<'g>) -> Tensor<'g> {
        assert_unary("relu", a);
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_relu(self.ctx(), a.as_ptr()) })
    }

    /// `a * a`, of a contiguous F32 tensor.
    pub fn sqr(&self, a: Tensor<'g>) -> Tensor<'g> {
        assert_unary("sqr", a);
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_sqr(self.ctx(), a.as_ptr()) })
    }

    /// The square root of `a`, of a contiguous F32 tensor.
    pub fn sqrt(&self, a: Tensor<'g>) -> Tensor<'g> {
        assert_unary("sqrt", a);
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_sqrt(self.ctx(), a.as_ptr()) })
    }

    /// F32 `[1, ne1, ne2, ne3]`: the sum of each row of a contiguous F32 tensor.
    pub fn sum_rows(&self, a: Tensor<'g>) -> Tensor<'g> {
        assert_unary("sum_rows", a);
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_sum_rows(self.ctx(), a.as_ptr()) })
    }

    /// I32 of the shape of `a`, a contiguous F32 tensor: of each row the numbers of its elements, from the smallest element to the largest, or,
    /// if `largest_first`, the other way round. Of equal elements any may come first.
    pub fn argsort(&self, a: Tensor<'g>, largest_first: bool) -> Tensor<'g> {
        assert_unary("argsort", a);
        let order = if largest_first { sys::GGML_SORT_ORDER_DESC } else { sys::GGML_SORT_ORDER_ASC };
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_argsort(self.ctx(), a.as_ptr(), order) })
    }

    /// F32 of this shape: zeros.
    pub fn zeros(&self, ne: [usize; 4]) -> Tensor<'g> {
        assert!(Type::F32.n_bytes(ne).is_some(), "zeros: shape {ne:?}");
        let ne = ne.map(int);
        // SAFETY: the context is live and has room; `wrap` counts the tensor.
        let t = self.wrap(unsafe { sys::ggml_new_tensor(self.ctx(), Type::F32.raw(), 4, ne.as_ptr()) });
        // SAFETY: an F32 tensor of this graph that nothing else refers to, so that it can be overwritten.
        self.wrap(unsafe { sys::ggml_fill_inplace(self.ctx(), t.as_ptr(), 0.0) })
    }

    /// F32 `[n]`: 0, 1, 2 and so on.
    pub fn arange(&self, n: usize) -> Tensor<'g> {
        assert!(n > 0 && n <= 1 << 24, "arange: {n} numbers");
        // SAFETY: the context is live and has room; `wrap` counts the tensor.
        self.wrap(unsafe { sys::ggml_arange(self.ctx(), 0.0, n as f32, 1.0) })
    }

    /// GELU of `a`, in its form with the hyperbolic tangent, of a contiguous F32 tensor.
    pub fn gelu(&self, a: Tensor<'g>) -> Tensor<'g> {
        assert_unary("gelu", a);
        // SAFETY: a contiguous F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_gelu(self.ctx(), a.as_ptr()) })
    }

    /// `silu(gate) * up`, of two tensors of one shape and type (F32, F16 or BF16), of which the rows lie one after the other.
    pub fn swiglu(&self, gate: Tensor<'g>, up: Tensor<'g>) -> Tensor<'g> {
        assert_gated("swiglu", gate, up);
        // SAFETY: equal shapes and types, rows one after the other.
        self.wrap(unsafe { sys::ggml_swiglu_split(self.ctx(), gate.as_ptr(), up.as_ptr()) })
    }

    /// `gelu(gate) * up`, with GELU in its form with the hyperbolic tangent, of tensors as [`Builder::swiglu`] takes them.
    pub fn geglu(&self, gate: Tensor<'g>, up: Tensor<'g>) -> Tensor<'g> {
        assert_gated("geglu", gate, up);
        // SAFETY: equal shapes and types, rows one after the other.
        self.wrap(unsafe { sys::ggml_geglu_split(self.ctx(), gate.as_ptr(), up.as_ptr()) })
    }

    /// `x / (1 + e^(-alpha x)) * (y + 1)`, where `x` is `gate`, at most `limit`, and `y` is `up`, within `-limit..=limit`: of F32 tensors as
    /// [`Builder::swiglu`] takes them.
    pub fn swiglu_oai(&self, gate: Tensor<'g>, up: Tensor<'g>, alpha: f32, limit: f32) -> Tensor<'g> {
        assert_gated("swiglu_oai", gate, up);
        assert!(gate.ty() == Type::F32 && limit >= 0.0, "swiglu_oai: type {:?}, limit {limit}", gate.ty());
        // SAFETY: equal shapes, rows one after the other, of the type that ggml has a kernel for.
        self.wrap(unsafe { sys::ggml_swiglu_oai(self.ctx(), gate.as_ptr(), up.as_ptr(), alpha, limit) })
    }

    /// Rotary position embedding of `a`, F32 or F16 `[n_embd_head, n_head, n_tokens, n]` with an even `n_embd_head`. `pos` is
    /// I32 `[n_tokens, 1, 1, 1]`. `factors`, F32, divide the frequencies: there is at least one for each pair of elements of
    /// a head, also of those that are not rotated, as ggml reads them all.
    pub fn rope(&self, a: Tensor<'g>, pos: Tensor<'g>, factors: Option<Tensor<'g>>, rope: &Rope) -> Tensor<'g> {
        let n_dims = rope.n_dims as usize;
        let ne = a.ne();
        assert!([Type::F32, Type::F16].contains(&a.ty()), "rope: type {:?}", a.ty());
        assert!(ne[0].is_multiple_of(2) && a.rows_are_contiguous(), "rope: heads of {ne:?} {:?}", a.nb());
        assert!(
            pos.ty() == Type::I32 && pos.ne() == [ne[2], 1, 1, 1] && pos.is_contiguous(),
            "rope: positions {:?} {:?} of {ne:?}",
            pos.ty(),
            pos.ne()
        );
        assert!(
            n_dims <= ne[0] && n_dims > 0 && n_dims.is_multiple_of(2),
            "rope: {n_dims} dimensions of heads of {}",
            ne[0]
        );
        if let Some(f) = factors {
            assert!(
                f.ty() == Type::F32 && f.ne()[0] >= ne[0] / 2 && f.is_contiguous(),
                "rope: factors {:?} {:?} of heads of {}",
                f.ty(),
                f.ne(),
                ne[0]
            );
        }
        // SAFETY: positions, factors and n_dims are as ggml asks; all of this graph.
        self.wrap(unsafe {
            sys::ggml_rope_ext(
                self.ctx(),
                a.as_ptr(),
                pos.as_ptr(),
                factors.map_or(std::ptr::null_mut(), Tensor::as_ptr),
                i32::try_from(rope.n_dims).expect("head sizes are small"),
                if rope.neox { 2 } else { 0 },
                i32::try_from(rope.n_ctx_orig).unwrap_or(i32::MAX),
                rope.freq_base,
                rope.freq_scale,
                rope.ext_factor,
                rope.attn_factor,
                rope.beta_fast,
                rope.beta_slow,
            )
        })
    }

    /// The elements of `a`, which is contiguous, in another shape. Nothing is copied.
    pub fn reshape(&self, a: Tensor<'g>, ne: [usize; 4]) -> Tensor<'g> {
        assert!(a.is_contiguous(), "reshape: the tensor is not contiguous");
        assert!(a.ty().n_bytes(ne) == Some(a.n_bytes()), "reshape: {:?} to {ne:?} of {:?}", a.ne(), a.ty());
        // SAFETY: a is contiguous and has as many elements, in whole blocks along each row.
        self.wrap(unsafe {
            sys::ggml_reshape_4d(self.ctx(), a.as_ptr(), int(ne[0]), int(ne[1]), int(ne[2]), int(ne[3]))
        })
    }

    /// The bytes of `a`, which is contiguous, as a tensor of another type and shape that takes as many. Nothing is copied.
    pub fn reinterpret(&self, a: Tensor<'g>, ty: Type, ne: [usize; 4]) -> Tensor<'g> {
        assert!(a.is_contiguous(), "reinterpret: the tensor is not contiguous");
        assert!(ty.n_bytes(ne) == Some(a.n_bytes()), "reinterpret: {:?} {:?} as {ty:?} {ne:?}", a.ty(), a.ne());
        let [n0, n1, n2, n3] = a.ne().map(int);
        let [_, nb1, nb2, nb3] = a.nb();
        // SAFETY: the view is all of a.
        let t = self.wrap(unsafe { sys::ggml_view_4d(self.ctx(), a.as_ptr(), n0, n1, n2, n3, nb1, nb2, nb3, 0) });
        let mut nb = [ty.block_bytes(), ty.row_bytes(ne[0]).expect("checked above"), 0, 0];
        nb[2] = nb[1] * ne[1];
        nb[3] = nb[2] * ne[2];
        let raw = t.as_ptr();
        // SAFETY: raw is a node of this graph that no other node refers to yet. With the new type, shape and strides it has as many bytes as
        // before, all of them a's, and ggml reads nothing else of a view.
        unsafe { ((*raw).type_, (*raw).ne, (*raw).nb) = (ty.raw(), ne.map(int), nb) };
        t
    }

    /// Part of `a` in place: its shape, the strides of its dimensions 1 to 3 in bytes, and where it begins, in bytes. The rows
    /// are contiguous, and strides and offset are multiples of the size of `a`'s blocks. The view lies within `a`, and has no
    /// more elements than `a` from the offset on.
    pub fn view(&self, a: Tensor<'g>, ne: [usize; 4], nb: [usize; 3], offset: usize) -> Tensor<'g> {
        let (ty, wanted) = (a.ty(), format_args!("{ne:?} {nb:?} from {offset} on").to_string());
        let bytes = ty.n_bytes(ne).unwrap_or_else(|| panic!("view: shape {wanted} of {ty:?}"));
        let block = ty.block_bytes();
        assert!(
            offset.is_multiple_of(block) && nb.iter().all(|nb| nb.is_multiple_of(block)),
            "view: {wanted} cuts blocks of {block} bytes"
        );
        let row = ty.row_bytes(ne[0]).expect("checked above");
        let reach = nb.iter().zip(&ne[1..]).try_fold(row, |sum, (nb, n)| nb.checked_mul(n - 1)?.checked_add(sum));
        let end = reach.and_then(|reach| reach.checked_add(offset));
        assert!(end.is_some_and(|end| end <= a.n_bytes()), "view: {wanted} is beyond {:?} {:?}", a.ne(), a.nb());
        // ggml compares the size that the view would have if it were contiguous.
        // SAFETY: the root is live.
        let room = unsafe { sys::ggml_nbytes(a.root()) } - a.raw().view_offs;
        assert!(bytes <= room - offset, "view: {wanted} has more elements than {:?}", a.ne());
        // SAFETY: the view lies within a.
        self.wrap(unsafe {
            sys::ggml_view_4d(
                self.ctx(),
                a.as_ptr(),
                int(ne[0]),
                int(ne[1]),
                int(ne[2]),
                int(ne[3]),
                nb[0],
                nb[1],
                nb[2],
                offset,
            )
        })
    }

    /// `a` with its dimensions in another order: dimension `i` becomes dimension `axes[i]`. Nothing is copied. The first
    /// dimension of a quantised tensor stays the first, as its blocks lie along it.
    pub fn permute(&self, a: Tensor<'g>, axes: [u8; 4]) -> Tensor<'g> {
        let mut seen = axes;
        seen.sort_unstable();
        assert!(seen == [0, 1, 2, 3], "permute: axes {axes:?}");
        assert!(axes[0] == 0 || a.ty().block_size() == 1, "permute: blocks of {:?} by {axes:?}", a.ty());
        let [x, y, z, w] = axes.map(i32::from);
        // SAFETY: the axes are a permutation.
        self.wrap(unsafe { sys::ggml_permute(self.ctx(), a.as_ptr(), x, y, z, w) })
    }

    /// A contiguous copy of `a` in the given shape, which has as many elements.
    pub fn cont(&self, a: Tensor<'g>, ne: [usize; 4]) -> Tensor<'g> {
        assert!(
            a.ty().n_bytes(ne).is_some() && a.ty().n_bytes(ne) == a.ty().n_bytes(a.ne()),
            "cont: {:?} to {ne:?} of {:?}",
            a.ne(),
            a.ty()
        );
        // SAFETY: the shape has as many elements, in whole blocks along each row.
        self.wrap(unsafe { sys::ggml_cont_4d(self.ctx(), a.as_ptr(), int(ne[0]), int(ne[1]), int(ne[2]), int(ne[3])) })
    }

    /// A contiguous copy of `a` in another type: F32, F16 and BF16 to each other, and from contiguous rows to what can be
    /// quantised without more than the values; F32 to I32 and back; anything that can be
    /// dequantised to F32.
    pub fn cast(&self, a: Tensor<'g>, ty: Type) -> Tensor<'g> {
        let from = a.ty();
        let floats = [Type::F32, Type::F16, Type::BF16];
        let known = from == ty && (ty.takes_floats() || !ty.is_quantized())
            || floats.contains(&from) && floats.contains(&ty)
            || floats.contains(&from) && ty.is_quantized() && ty.takes_floats()
            || [(Type::F32, Type::I32), (Type::I32, Type::F32)].contains(&(from, ty))
            || from.is_quantized() && can_dequantize(from) && ty == Type::F32;
        assert!(known, "cast: from {from:?} to {ty:?}");
        assert!(ty.n_bytes(a.ne()).is_some(), "cast: {:?} to {ty:?}", a.ne());
        assert!(from == ty || !ty.is_quantized() || a.rows_are_contiguous(), "cast: the rows are not contiguous");
        // SAFETY: ggml has a kernel for the types, and the type's blocks divide the rows.
        self.wrap(unsafe { sys::ggml_cast(self.ctx(), a.as_ptr(), ty.raw()) })
    }

    /// `a` `[n, m, k, 1]` with its rows `ids` (I64 or I32 `[n_ids, 1, 1, 1]`) replaced by `rows` (F32 `[n, n_ids, k, 1]`), in each of
    /// the `k` matrices. This changes `a` itself, which is no weight, and is of a type that floats can be converted to.
    ///
    /// Numbers that an input holds are checked when it is set. Where the graph computes them, they must be below `m`: ggml
    /// ends the process otherwise.
    pub fn set_rows(&self, a: Tensor<'g>, rows: Tensor<'g>, ids: Tensor<'g>) -> Tensor<'g> {
        let (m, n) = (a.ne(), rows.ne());
        assert!(m[0] == n[0] && m[2..] == n[2..] && m[3] == 1, "set_rows: shapes {m:?} and {n:?}");
        let buffer = a.root().buffer;
        // SAFETY: a tensor's buffer is live while the tensor is.
        let weights = !buffer.is_null()
            && unsafe { sys::ggml_backend_buffer_get_usage(buffer) } == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
        assert!(!weights, "set_rows: weights may be mapped and are read-only");
        assert!(a.ty().takes_floats(), "set_rows: type {:?}", a.ty());
        assert!(rows.ty() == Type::F32, "set_rows: rows of {:?}", rows.ty());
        assert!(a.rows_are_contiguous() && rows.rows_are_contiguous(), "set_rows: the rows are not contiguous");
        let is_number = [Type::I64, Type::I32].contains(&ids.ty());
        assert!(is_number && ids.ne() == [n[1], 1, 1, 1], "set_rows: ids {:?} {:?}", ids.ty(), ids.ne());
        self.choose_rows(ids, m[1]);
        // SAFETY: shapes and types are as ggml asks.
        self.wrap(unsafe { sys::ggml_set_rows(self.ctx(), a.as_ptr(), rows.as_ptr(), ids.as_ptr()) })
    }

    /// Attention in one operation: `q` F32 `[n_embd_head, n_tokens, n_head, n_seq]`, `k` and `v`
    /// `[n_embd_head, n_kv, n_head_kv, n_seq]` of any types that ggml multiplies and dequantises, `mask` F16
    /// `[n_kv, n_tokens, 1, n_seq]` and contiguous. Returns F32 `[n_embd_head, n_head, n_tokens, n_seq]`. With a `softcap` other than 0,
    /// scores become `softcap * tanh(score / softcap)` before they are masked.
    pub fn flash_attn(
        &self,
        q: Tensor<'g>,
        k: Tensor<'g>,
        v: Tensor<'g>,
        mask: Tensor<'g>,
        scale: f32,
        softcap: f32,
    ) -> Tensor<'g> {
        let (nq, nk, nv, nm) = (q.ne(), k.ne(), v.ne(), mask.ne());
        assert!(nq[0] == nk[0] && nk[1..] == nv[1..] && nq[3] == nk[3], "flash_attn: q {nq:?}, k {nk:?}, v {nv:?}");
        assert!(nq[2].is_multiple_of(nk[2]), "flash_attn: {} heads on {}", nq[2], nk[2]);
        let types = [q.ty(), k.ty(), v.ty()];
        assert!(
            q.ty() == Type::F32 && k.ty().multiplies(Type::F32) && can_dequantize(v.ty()),
            "flash_attn: types {types:?}"
        );
        assert!([q, k, v].iter().all(|t| t.rows_are_contiguous()), "flash_attn: the rows are not contiguous");
        assert!(
            mask.ty() == Type::F16
                && mask.is_contiguous()
                && nm[0] == nk[1]
                && nm[1] >= nq[1]
                && nq[2].is_multiple_of(nm[2])
                && nq[3].is_multiple_of(nm[3]),
            "flash_attn: mask {:?} {nm:?} for q {nq:?}, k {nk:?}",
            mask.ty()
        );
        let ne = [nv[0], nq[2], nq[1], nq[3]];
        assert!(Type::F32.n_bytes(ne).is_some(), "flash_attn: result {ne:?}");
        // SAFETY: shapes and types are as ggml asks.
        let t = self.wrap(unsafe {
            sys::ggml_flash_attn_ext(self.ctx(), q.as_ptr(), k.as_ptr(), v.as_ptr(), mask.as_ptr(), scale, 0.0, softcap)
        });
        self.accumulate_in_f32(t);
        t
    }

    /// `a` and then `b`, one after the other along dimension `dim`. They are of one type, equally long in all other
    /// dimensions, and have contiguous rows.
    pub fn concat(&self, a: Tensor<'g>, b: Tensor<'g>, dim: usize) -> Tensor<'g> {
        let (m, n) = (a.ne(), b.ne());
        assert!(dim < 4, "concat: dimension {dim}");
        assert!(a.ty() == b.ty(), "concat: types {:?} and {:?}", a.ty(), b.ty());
        assert!((0..4).all(|d| d == dim || m[d] == n[d]), "concat: shapes {m:?} and {n:?} along dimension {dim}");
        assert!(a.rows_are_contiguous() && b.rows_are_contiguous(), "concat: the rows are not contiguous");
        let mut ne = m;
        ne[dim] += n[dim];
        assert!(a.ty().n_bytes(ne).is_some(), "concat: result {ne:?}");
        let dim = i32::try_from(dim).expect("below 4");
        // SAFETY: equal types, and shapes that differ in dim at most; the kernels copy whole rows of any type.
        self.wrap(unsafe { sys::ggml_concat(self.ctx(), a.as_ptr(), b.as_ptr(), dim) })
    }

    /// Softmax of `scale * a + mask` along rows. `a` is F32 and contiguous, `mask`, if there is one, F32 or F16 `[ne0, ne1, 1, ne3]`
    /// and contiguous; it may have more rows than `a`, and is repeated over ne2 and ne3.
    pub fn soft_max(&self, a: Tensor<'g>, mask: Option<Tensor<'g>>, scale: f32) -> Tensor<'g> {
        let n = a.ne();
        assert!(a.ty() == Type::F32 && a.is_contiguous(), "soft_max: input {:?} {n:?} {:?}", a.ty(), a.nb());
        if let Some(mask) = mask {
            let m = mask.ne();
            assert!(
                [Type::F32, Type::F16].contains(&mask.ty())
                    && mask.is_contiguous()
                    && m[0] == n[0]
                    && m[1] >= n[1]
                    && n[2].is_multiple_of(m[2])
                    && n[3].is_multiple_of(m[3]),
                "soft_max: mask {:?} {m:?} for {n:?}",
                mask.ty()
            );
        }
        let mask = mask.map_or(std::ptr::null_mut(), Tensor::as_ptr);
        // SAFETY: shapes and types are as ggml asks.
        self.wrap(unsafe { sys::ggml_soft_max_ext(self.ctx(), a.as_ptr(), mask, scale, 0.0) })
    }

    /// The result, of type `ty` and shape `ne`, of an operation of the caller's on one to nine sources. Computed on the CPU.
    /// Parts of some columns ([`Op::division`]) are for types without blocks.
    pub fn custom(&self, ty: Type, ne: [usize; 4], sources: &[Tensor<'g>], op: impl Op + 'static) -> Tensor<'g> {
        assert!(ty.n_bytes(ne).is_some(), "custom: shape {ne:?} of {ty:?}");
        // ggml's own limit on sources of a node, less the one that it keeps.
        assert!((1..=9).contains(&sources.len()), "custom: {} sources", sources.len());
        let op = Box::new(Custom::new(op, sources.len(), ty, ne));
        let data: *const Custom = &*op;
        let mut args: Vec<_> = sources.iter().map(|s| s.as_ptr()).collect();
        let [ne0, ne1, ne2, ne3] = ne.map(int);
        let n_args = i32::try_from(args.len()).expect("at most nine");
        // SAFETY: the sources are of this graph; the operation is boxed and kept as long as the graph.
        let t = self.wrap(unsafe {
            sys::ggml_custom_4d(
                self.ctx(),
                ty.raw(),
                ne0,
                ne1,
                ne2,
                ne3,
                args.as_mut_ptr(),
                n_args,
                Some(custom::call),
                -1, // as many threads as there are
                data.cast_mut().cast(),
            )
        });
        self.ops.borrow_mut().push(op);
        t
    }

    /// Gives the softmax of `t`, which [`Builder::soft_max`] or [`Builder::flash_attn`] made, a score more for each head: it takes a part of
    /// the weights, and has no value. `sinks` is F32 `[n_head, 1, 1, 1]`.
    pub fn add_sinks(&self, t: Tensor<'g>, sinks: Tensor<'g>) {
        // SAFETY: t is a node of this graph.
        let (op, sources) = unsafe { ((*t.as_ptr()).op, (*t.as_ptr()).src) };
        let (add, old) = match op {
            sys::GGML_OP_SOFT_MAX => (sys::ggml_soft_max_add_sinks as unsafe extern "C" fn(_, _), sources[2]),
            sys::GGML_OP_FLASH_ATTN_EXT => (sys::ggml_flash_attn_ext_add_sinks as _, sources[4]),
            op => panic!("add_sinks: to operation {op}"),
        };
        // SAFETY: both operations have a first source, with heads in the third dimension.
        let n_head = unsafe { (*sources[0]).ne[2] } as usize;
        assert!(old.is_null(), "add_sinks: it has sinks");
        assert!(sinks.ty() == Type::F32 && sinks.is_contiguous(), "add_sinks: type {:?}", sinks.ty());
        assert!(sinks.ne() == [n_head, 1, 1, 1], "add_sinks: {:?} for {n_head} heads", sinks.ne());
        // SAFETY: the operation is one of the two, has no sinks yet, and type and shape are as ggml asks.
        unsafe { add(t.as_ptr(), sinks.as_ptr()) };
    }

    /// Asks devices that could accumulate a product of matrices in less than 32-bit floats not to.
    pub fn accumulate_in_f32(&self, t: Tensor<'g>) {
        // SAFETY: t is a node of this graph; operations without the setting ignore it.
        unsafe { sys::ggml_prec_set_acc(t.as_ptr(), sys::GGML_PREC_F32) };
    }
}
