//! Building graphs.
//!
//! [`Graph::build`] hands a [`Builder`] to a closure; the tensors that its operations return carry the builder's brand
//! (an invariant lifetime), so that tensors of different graphs cannot be mixed and none outlives its graph. What the
//! caller keeps are [`Slot`]s: inputs to set and outputs to get. Every operation checks the shapes that ggml would
//! otherwise abort on.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::rc::Rc;

use llama_cpp_sys_2 as sys;

use crate::custom::{self, Custom, Op};
use crate::store::{Store, TensorId};
use crate::types::Type;

/// Owner of tensor headers.
#[derive(Debug)]
pub(crate) struct Context {
    ptr: NonNull<sys::ggml_context>,
}

impl Context {
    /// A context of `bytes` for headers, without data.
    fn new(bytes: usize) -> Context {
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

fn tensor_overhead() -> usize {
    // SAFETY: returns a constant.
    unsafe { sys::ggml_tensor_overhead() }
}

/// A context for up to `n` tensors and no graph.
pub(crate) fn init_context(n: usize) -> Context {
    Context::new((n + 1) * tensor_overhead())
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
    slots: Vec<NonNull<sys::ggml_tensor>>,
    // Boxed: nodes of the graph point to them.
    #[allow(clippy::vec_box, reason = "addresses must not change")]
    ops: Vec<Box<Custom>>,
    _stores: Vec<Rc<Store>>,
}

/// Whether an operation has anything to compute.
pub(crate) fn computes(op: sys::ggml_op) -> bool {
    !matches!(
        op,
        sys::GGML_OP_NONE | sys::GGML_OP_RESHAPE | sys::GGML_OP_VIEW | sys::GGML_OP_PERMUTE | sys::GGML_OP_TRANSPOSE
    )
}

/// Builds one graph.
#[derive(Debug)]
pub struct Builder<'g> {
    context: Context,
    graph: NonNull<sys::ggml_cgraph>,
    /// How many tensors can still be made, and how many there can be.
    room: Cell<usize>,
    max_tensors: usize,
    /// Tensors of stores that were used.
    leaves: RefCell<HashSet<NonNull<sys::ggml_tensor>>>,
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
    /// Builds a graph of up to `max_tensors` tensors, counting views and inputs, and up to as many tensors of stores.
    pub fn build<R>(max_tensors: usize, f: impl for<'g> FnOnce(&Builder<'g>) -> R) -> (Graph, R) {
        // SAFETY: returns a size computed from the number.
        let overhead = unsafe { sys::ggml_graph_overhead_custom(max_tensors, false) };
        let context = Context::new((max_tensors + 1) * tensor_overhead() + overhead);
        // SAFETY: the context is live and has room for the graph.
        let graph = unsafe { sys::ggml_new_graph_custom(context.as_ptr(), max_tensors, false) };
        let builder = Builder {
            graph: NonNull::new(graph).expect("the context has room for the graph"),
            context,
            room: Cell::new(max_tensors),
            max_tensors,
            leaves: RefCell::default(),
            slots: RefCell::default(),
            ops: RefCell::default(),
            stores: RefCell::default(),
            brand: PhantomData,
        };
        let result = f(&builder);
        let n_tensors = max_tensors - builder.room.get() + builder.leaves.borrow().len();
        let Builder { context, graph, slots, ops, stores, .. } = builder;
        let (slots, ops, _stores) = (slots.into_inner(), ops.into_inner(), stores.into_inner());
        (Graph { graph, _context: context, n_tensors, slots, ops, _stores }, result)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_cgraph {
        self.graph.as_ptr()
    }

    /// Number of nodes that compute something.
    pub(crate) fn n_operations(&self) -> usize {
        // SAFETY: the graph is live.
        let n = unsafe { sys::ggml_graph_n_nodes(self.graph.as_ptr()) };
        // SAFETY: the number is below that of the graph's nodes, which are live with it.
        let op = |i: i32| unsafe { (*sys::ggml_graph_node(self.graph.as_ptr(), i)).op };
        (0..n).filter(|&i| computes(op(i))).count()
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
        self.slots[slot.0]
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

    /// Shape.
    pub fn ne(&self) -> [usize; 4] {
        self.raw().ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// Strides in bytes.
    pub fn nb(&self) -> [usize; 4] {
        self.raw().nb
    }

    /// Element type.
    pub fn ty(&self) -> Type {
        Type::from_id(self.raw().type_).expect("tensors have types of this ggml")
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.ne().iter().product()
    }

    fn n_bytes(&self) -> usize {
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_nbytes(self.as_ptr()) }
    }

    fn is_contiguous(&self) -> bool {
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_is_contiguous(self.as_ptr()) }
    }

    fn rows_are_contiguous(&self) -> bool {
        self.raw().nb[0] == self.ty().block_bytes()
    }
}

fn int(n: usize) -> i64 {
    i64::try_from(n).expect("dimensions fit in i64")
}

/// Whether `b` can be broadcast onto `a`.
fn repeats_to(b: Tensor, a: Tensor) -> bool {
    a.ne().iter().zip(b.ne()).all(|(&a, b)| b > 0 && a.is_multiple_of(b))
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
        Tensor { ptr: NonNull::new(ptr).expect("ggml returns a tensor or aborts"), brand: PhantomData }
    }

    fn slot(&self, t: Tensor<'g>) -> Slot {
        let mut slots = self.slots.borrow_mut();
        slots.push(t.ptr);
        Slot(slots.len() - 1)
    }

    /// A tensor that is set before each run.
    pub fn input(&self, name: &str, ty: Type, ne: [usize; 4]) -> (Tensor<'g>, Slot) {
        assert!(ty.row_bytes(ne[0]).is_some() && ne.iter().all(|&n| n > 0), "shape of input {name}");
        let ne = ne.map(int);
        // SAFETY: the context is live and has room (checked by `wrap` for the next one, with one spare).
        let t = self.wrap(unsafe { sys::ggml_new_tensor(self.ctx(), ty.raw(), 4, ne.as_ptr()) });
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_set_input(t.as_ptr()) };
        self.name(t, name);
        (t, self.slot(t))
    }

    /// Marks a result that is read after each run.
    pub fn output(&self, t: Tensor<'g>) -> Slot {
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
        Tensor { ptr, brand: PhantomData }
    }

    /// Adds the operations that `t` needs, and `t`, to the graph, in this order.
    pub fn expand(&self, t: Tensor<'g>) {
        // SAFETY: graph and tensor are of this builder.
        unsafe { sys::ggml_build_forward_expand(self.graph.as_ptr(), t.as_ptr()) }
    }

    /// Names a tensor in dumps.
    pub fn name(&self, t: Tensor<'g>, name: &str) {
        let name = CString::new(name).expect("names of nodes are literals");
        // SAFETY: the tensor is live; ggml copies at most 63 bytes.
        unsafe { sys::ggml_set_name(t.as_ptr(), name.as_ptr()) };
    }

    /// `[ne0, n_ids]`: rows of the matrix `a` by the I32 vector `ids`, as F32.
    pub fn get_rows(&self, a: Tensor<'g>, ids: Tensor<'g>) -> Tensor<'g> {
        assert!(ids.ty() == Type::I32 && ids.ne()[1..] == [1, 1, 1] && a.ne()[2..] == [1, 1], "get_rows");
        // SAFETY: a matrix and a vector of row numbers, of this graph.
        self.wrap(unsafe { sys::ggml_get_rows(self.ctx(), a.as_ptr(), ids.as_ptr()) })
    }

    /// `[a.ne1, x.ne1, x.ne2, x.ne3]`: `a` (its rows broadcast over ne2 and ne3) times `x`.
    pub fn mul_mat(&self, a: Tensor<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let (m, n) = (a.ne(), x.ne());
        assert!(m[0] == n[0] && n[2].is_multiple_of(m[2]) && n[3].is_multiple_of(m[3]), "mul_mat {m:?} {n:?}");
        assert!(a.nb()[0] <= a.nb()[1], "mul_mat: the first matrix is transposed");
        // SAFETY: the shapes are as ggml_can_mul_mat asks.
        self.wrap(unsafe { sys::ggml_mul_mat(self.ctx(), a.as_ptr(), x.as_ptr()) })
    }

    /// `x` multiplied, in runs of `rot.ne0`, with the symmetric Hadamard matrix `rot`. Same shape as `x`.
    pub fn mul_mat_hadamard(&self, x: Tensor<'g>, rot: Tensor<'g>) -> Tensor<'g> {
        let n = rot.ne()[0];
        let ne = x.ne();
        let runs = x.n_elements() / n;
        let flat = if x.is_contiguous() { self.reshape(x, [n, runs, 1, 1]) } else { self.cont(x, [n, runs, 1, 1]) };
        let res = self.mul_mat(rot, flat);
        // SAFETY: res is a mul_mat node.
        unsafe { sys::ggml_mul_mat_set_hint(res.as_ptr(), sys::GGML_HINT_SRC0_IS_HADAMARD) };
        self.reshape(res, ne)
    }

    /// `a + b`, `b` broadcast.
    pub fn add(&self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        assert!(repeats_to(b, a), "add {:?} {:?}", a.ne(), b.ne());
        // SAFETY: b repeats to a's shape.
        self.wrap(unsafe { sys::ggml_add(self.ctx(), a.as_ptr(), b.as_ptr()) })
    }

    /// `a * b` element by element, `b` broadcast.
    pub fn mul(&self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        assert!(repeats_to(b, a), "mul {:?} {:?}", a.ne(), b.ne());
        // SAFETY: b repeats to a's shape.
        self.wrap(unsafe { sys::ggml_mul(self.ctx(), a.as_ptr(), b.as_ptr()) })
    }

    /// Rows of `a` divided by their root mean square.
    pub fn rms_norm(&self, a: Tensor<'g>, eps: f32) -> Tensor<'g> {
        assert!(eps >= 0.0, "rms_norm: eps {eps}");
        // SAFETY: any F32 tensor of this graph.
        self.wrap(unsafe { sys::ggml_rms_norm(self.ctx(), a.as_ptr(), eps) })
    }

    /// `silu(gate) * up`.
    pub fn swiglu(&self, gate: Tensor<'g>, up: Tensor<'g>) -> Tensor<'g> {
        assert!(gate.ne() == up.ne() && gate.ty() == up.ty(), "swiglu");
        // SAFETY: equal shapes and types.
        self.wrap(unsafe { sys::ggml_swiglu_split(self.ctx(), gate.as_ptr(), up.as_ptr()) })
    }

    /// Rotary position embedding of `a` `[n_embd_head, n_head, n_tokens]`; `pos` is I32 `[n_tokens]`, `factors` F32
    /// `[n_dims / 2]`.
    pub fn rope(&self, a: Tensor<'g>, pos: Tensor<'g>, factors: Option<Tensor<'g>>, rope: &Rope) -> Tensor<'g> {
        let n_dims = rope.n_dims as usize;
        assert!(pos.ty() == Type::I32 && pos.ne() == [a.ne()[2], 1, 1, 1], "rope: positions");
        assert!(n_dims <= a.ne()[0] && n_dims.is_multiple_of(2), "rope: n_dims");
        assert!(factors.is_none_or(|f| f.ty() == Type::F32 && f.ne()[0] >= n_dims / 2), "rope: factors");
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

    /// The same elements in another shape.
    pub fn reshape(&self, a: Tensor<'g>, ne: [usize; 4]) -> Tensor<'g> {
        assert!(a.is_contiguous() && a.n_elements() == ne.iter().product(), "reshape {:?} {ne:?}", a.ne());
        // SAFETY: a is contiguous and has as many elements.
        self.wrap(unsafe {
            sys::ggml_reshape_4d(self.ctx(), a.as_ptr(), int(ne[0]), int(ne[1]), int(ne[2]), int(ne[3]))
        })
    }

    /// Part of `a`: shape, strides of dimensions 1 to 3 in bytes, offset in bytes.
    pub fn view(&self, a: Tensor<'g>, ne: [usize; 4], nb: [usize; 3], offset: usize) -> Tensor<'g> {
        let row = a.ty().row_bytes(ne[0]).expect("view: whole blocks");
        assert!(ne.iter().all(|&n| n > 0), "view: empty");
        let last = nb.iter().zip(&ne[1..]).map(|(nb, n)| nb * (n - 1)).sum::<usize>();
        assert!(offset + last + row <= a.n_bytes(), "view: beyond the tensor");
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

    /// Dimension i of `a` becomes dimension `axes[i]`.
    pub fn permute(&self, a: Tensor<'g>, axes: [u8; 4]) -> Tensor<'g> {
        let mut seen = axes;
        seen.sort_unstable();
        assert!(seen == [0, 1, 2, 3], "permute {axes:?}");
        let [x, y, z, w] = axes.map(i32::from);
        // SAFETY: the axes are a permutation.
        self.wrap(unsafe { sys::ggml_permute(self.ctx(), a.as_ptr(), x, y, z, w) })
    }

    /// A contiguous copy of `a` in the given shape.
    pub fn cont(&self, a: Tensor<'g>, ne: [usize; 4]) -> Tensor<'g> {
        assert!(a.n_elements() == ne.iter().product::<usize>(), "cont {:?} {ne:?}", a.ne());
        // SAFETY: the shape has as many elements.
        self.wrap(unsafe { sys::ggml_cont_4d(self.ctx(), a.as_ptr(), int(ne[0]), int(ne[1]), int(ne[2]), int(ne[3])) })
    }

    /// A copy of `a` in another type.
    pub fn cast(&self, a: Tensor<'g>, ty: Type) -> Tensor<'g> {
        assert!(ty.row_bytes(a.ne()[0]).is_some(), "cast: whole blocks");
        // SAFETY: the type is ggml's and its blocks divide the rows.
        self.wrap(unsafe { sys::ggml_cast(self.ctx(), a.as_ptr(), ty.raw()) })
    }

    /// `a` `[n, m, k]` with its rows `ids` (I64) replaced by `rows` (F32 `[n, n_ids, k]`), in each of the `k` matrices.
    pub fn set_rows(&self, a: Tensor<'g>, rows: Tensor<'g>, ids: Tensor<'g>) -> Tensor<'g> {
        let (m, n) = (a.ne(), rows.ne());
        assert!(m[0] == n[0] && m[2..] == n[2..] && m[3] == 1, "set_rows {m:?} {n:?}");
        // SAFETY: the tensor that a view is of lives as long as the view.
        let root = unsafe { a.raw().view_src.as_ref() }.unwrap_or(a.raw());
        // SAFETY: a tensor's buffer is live while the tensor is.
        let weights = !root.buffer.is_null()
            && unsafe { sys::ggml_backend_buffer_get_usage(root.buffer) } == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
        assert!(!weights, "set_rows: weights may be mapped and are read-only");
        assert!(rows.ty() == Type::F32 && rows.rows_are_contiguous(), "set_rows: rows");
        assert!(ids.ty() == Type::I64 && ids.ne() == [n[1], 1, 1, 1], "set_rows: ids");
        // SAFETY: shapes and types are as ggml asks; ids are checked by the kernel against ne1.
        self.wrap(unsafe { sys::ggml_set_rows(self.ctx(), a.as_ptr(), rows.as_ptr(), ids.as_ptr()) })
    }

    /// Attention in one operation: `q` F32 `[n_embd_head, n_tokens, n_head, n_seq]`, `k` and `v`
    /// `[n_embd_head, n_kv, n_head_kv, n_seq]`, `mask` F16 `[n_kv, n_tokens, 1, n_seq]`. Returns
    /// `[n_embd_head, n_head, n_tokens, n_seq]`.
    pub fn flash_attn(&self, q: Tensor<'g>, k: Tensor<'g>, v: Tensor<'g>, mask: Tensor<'g>, scale: f32) -> Tensor<'g> {
        let (nq, nk, nv, nm) = (q.ne(), k.ne(), v.ne(), mask.ne());
        assert!(nq[0] == nk[0] && nk[1] == nv[1] && nk[2] == nv[2] && nk[3] == nv[3], "flash_attn: k, v");
        assert!(nq[2].is_multiple_of(nk[2]) && nq[3].is_multiple_of(nk[3]), "flash_attn: heads");
        assert!(mask.ty() == Type::F16 && mask.is_contiguous(), "flash_attn: mask");
        assert!(
            nm[0] == nk[1] && nm[1] >= nq[1] && nq[2].is_multiple_of(nm[2]) && nq[3].is_multiple_of(nm[3]),
            "flash_attn: mask"
        );
        // SAFETY: shapes and types are as ggml asks.
        let t = self.wrap(unsafe {
            sys::ggml_flash_attn_ext(self.ctx(), q.as_ptr(), k.as_ptr(), v.as_ptr(), mask.as_ptr(), scale, 0.0, 0.0)
        });
        self.accumulate_in_f32(t);
        t
    }

    /// `a` and then `b`, one after the other along dimension `dim`; in all other dimensions they are equally long.
    pub fn concat(&self, a: Tensor<'g>, b: Tensor<'g>, dim: usize) -> Tensor<'g> {
        let (m, n) = (a.ne(), b.ne());
        assert!(dim < 4, "concat: dimension {dim}");
        assert!(a.ty() == b.ty(), "concat: {:?} and {:?}", a.ty(), b.ty());
        assert!((0..4).all(|d| d == dim || m[d] == n[d]), "concat {m:?} {n:?} along dimension {dim}");
        assert!(a.rows_are_contiguous() && b.rows_are_contiguous(), "concat: the rows are not contiguous");
        let dim = i32::try_from(dim).expect("below 4");
        // SAFETY: equal types, and shapes that differ in dim at most; the kernels copy whole rows of any type.
        self.wrap(unsafe { sys::ggml_concat(self.ctx(), a.as_ptr(), b.as_ptr(), dim) })
    }

    /// Softmax of `scale * a + mask` along rows; `mask` F32 or F16 `[ne0, ne1, 1, ne3]`.
    pub fn soft_max(&self, a: Tensor<'g>, mask: Tensor<'g>, scale: f32) -> Tensor<'g> {
        let (n, m) = (a.ne(), mask.ne());
        assert!(mask.is_contiguous() && m[0] == n[0] && m[1] >= n[1], "soft_max: mask");
        assert!(n[2].is_multiple_of(m[2]) && n[3].is_multiple_of(m[3]), "soft_max: mask");
        assert!(a.is_contiguous(), "soft_max: input");
        // SAFETY: shapes are as ggml asks.
        self.wrap(unsafe { sys::ggml_soft_max_ext(self.ctx(), a.as_ptr(), mask.as_ptr(), scale, 0.0) })
    }

    /// The result, of type `ty` and shape `ne`, of an operation of the caller's on up to nine sources. Computed on the CPU.
    pub fn custom(&self, ty: Type, ne: [usize; 4], sources: &[Tensor<'g>], op: impl Op + 'static) -> Tensor<'g> {
        assert!(ty.row_bytes(ne[0]).is_some() && ne.iter().all(|&n| n > 0), "custom: shape {ne:?}");
        // ggml's own limit on sources of a node, less the one that it keeps.
        assert!((1..=9).contains(&sources.len()), "custom: sources");
        let op = Box::new(Custom::new(op, sources.len()));
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

    /// Asks devices that could use less to accumulate in 32-bit floats.
    pub fn accumulate_in_f32(&self, t: Tensor<'g>) {
        // SAFETY: t is a node of this graph; operations without the setting ignore it.
        unsafe { sys::ggml_prec_set_acc(t.as_ptr(), sys::GGML_PREC_F32) };
    }
}
