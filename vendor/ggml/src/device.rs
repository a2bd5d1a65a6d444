//! Devices that compute, and the kinds of memory they compute from.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use llama_cpp_sys_2 as sys;

use crate::graph::init_context;
use crate::llama::start;
use crate::types::Type;

/// Whoever asks a device for its memory holds this: the Vulkan backend makes a device ready when it is first asked, and a second thread that
/// asks meanwhile would get a half-made one.
static FIRST_USE: Mutex<()> = Mutex::new(());

/// A CPU or GPU that ggml was built for and found. Devices live as long as the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Device {
    ptr: NonNull<sys::ggml_backend_device>,
}

/// What a weight is used for in a graph; decides which kinds of memory can hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// `mul_mat(weight, x)`
    MulMat,
    /// `mul_mat_id(weight, x, ids)`
    MulMatId,
    /// `get_rows(weight, ids)`
    GetRows,
    /// `mul(x, weight)`
    Mul,
    /// `add(x, weight)`
    Add,
    /// `add_id(x, weight, ids)`
    AddId,
    /// Sinks of attention.
    Sinks,
    /// Frequency factors of `rope`.
    Rope,
}

impl Device {
    /// The CPU, which every build has.
    pub fn cpu() -> Device {
        start();
        // SAFETY: the registry is initialised on first use and never torn down; the call takes no pointer.
        let ptr = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
        Device { ptr: NonNull::new(ptr).expect("ggml is always built with its CPU backend") }
    }

    /// All devices, in ggml's order.
    pub fn all() -> Vec<Device> {
        start();
        // SAFETY: reads the length of the process-wide registry.
        let n = unsafe { sys::ggml_backend_dev_count() };
        // SAFETY: i is below the registry's length, which never shrinks.
        let get = |i| unsafe { sys::ggml_backend_dev_get(i) };
        (0..n).filter_map(|i| NonNull::new(get(i))).map(|ptr| Device { ptr }).collect()
    }

    /// The GPUs, integrated ones last; empty in a build without GPU features.
    pub fn gpus() -> Vec<Device> {
        let of_kind = |kind| {
            // SAFETY: the device is registered.
            move |d: &Device| unsafe { sys::ggml_backend_dev_type(d.as_ptr()) } == kind
        };
        let kinds = [sys::GGML_BACKEND_DEVICE_TYPE_GPU, sys::GGML_BACKEND_DEVICE_TYPE_IGPU];
        kinds.into_iter().flat_map(|kind| Device::all().into_iter().filter(of_kind(kind))).collect()
    }

    pub(crate) fn as_ptr(self) -> sys::ggml_backend_dev_t {
        self.ptr.as_ptr()
    }

    pub(crate) fn from_ptr(ptr: NonNull<sys::ggml_backend_device>) -> Device {
        Device { ptr }
    }

    /// ggml's name of the device, such as `CPU` or `Vulkan0`.
    pub fn name(self) -> String {
        // SAFETY: the device is registered; its name is a C string that lives as long.
        let name = unsafe { CStr::from_ptr(sys::ggml_backend_dev_name(self.as_ptr())) };
        name.to_string_lossy().into_owned()
    }

    /// What the device is, such as the processor's name.
    pub fn description(self) -> String {
        // SAFETY: the device is registered; its description is a C string that lives as long.
        let description = unsafe { CStr::from_ptr(sys::ggml_backend_dev_description(self.as_ptr())) };
        description.to_string_lossy().into_owned()
    }

    /// Name of the backend that drives the device, such as `CPU` or `Vulkan`.
    pub fn backend_name(self) -> String {
        // SAFETY: the device is registered, so it has a registry entry.
        let reg = unsafe { sys::ggml_backend_dev_backend_reg(self.as_ptr()) };
        // SAFETY: a registry entry's name is a C string that lives as long as the process.
        let name = unsafe { CStr::from_ptr(sys::ggml_backend_reg_name(reg)) };
        name.to_string_lossy().into_owned()
    }

    /// Free and total memory in bytes.
    pub fn memory(self) -> (usize, usize) {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the device is registered; both pointers are to live locals.
        unsafe { sys::ggml_backend_dev_memory(self.as_ptr(), &mut free, &mut total) };
        (free, total)
    }

    /// The device's own memory. Whatever else is done with a device comes after this was called once.
    pub fn buffer_type(self) -> BufferType {
        let _alone = FIRST_USE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the device is registered.
        let ptr = unsafe { sys::ggml_backend_dev_buffer_type(self.as_ptr()) };
        BufferType { ptr: NonNull::new(ptr).expect("every device has a buffer type") }
    }

    /// Memory in which the device keeps weights in a layout of its own (CPU_REPACK), best first.
    pub fn extra_buffer_types(self) -> Vec<BufferType> {
        // SAFETY: the device is registered.
        let reg = unsafe { sys::ggml_backend_dev_backend_reg(self.as_ptr()) };
        // SAFETY: reg is the device's registry entry; the name is a C string.
        let address =
            unsafe { sys::ggml_backend_reg_get_proc_address(reg, c"ggml_backend_dev_get_extra_bufts".as_ptr()) };
        if address.is_null() {
            return Vec::new();
        }
        type GetExtraBufts = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
        // SAFETY: ggml-backend.h gives this type to the function of this name.
        let get = unsafe { std::mem::transmute::<*mut std::ffi::c_void, GetExtraBufts>(address) };
        // SAFETY: the device is registered; the result is null or a null-terminated static array.
        let mut entry = unsafe { get(self.as_ptr()) };
        let mut found = Vec::new();
        while !entry.is_null() {
            // SAFETY: entry points into the array, not beyond its terminator.
            let Some(ptr) = NonNull::new(unsafe { *entry }) else { break };
            found.push(BufferType { ptr });
            // SAFETY: *entry was not the terminator, so one more element follows.
            entry = unsafe { entry.add(1) };
        }
        found
    }

    /// Whether the device can compute from the program's own memory, in place.
    pub fn computes_in_place(self) -> bool {
        let mut props = std::mem::MaybeUninit::<sys::ggml_backend_dev_props>::zeroed();
        // SAFETY: the device is registered; props is writable and of the right size.
        unsafe { sys::ggml_backend_dev_get_props(self.as_ptr(), props.as_mut_ptr()) };
        // SAFETY: all-zero bytes are valid for the struct, and the call above filled it.
        unsafe { props.assume_init() }.caps.buffer_from_host_ptr
    }

    /// Whether the device can use a weight of this type and shape `[ne0, ne1, ne2]` from that memory; `ne2` is 1 but for
    /// [`Usage::MulMatId`].
    ///
    /// # Panics
    /// If the weight has no elements, rows that are not whole blocks of its type, or more bytes than any memory.
    pub fn supports(self, memory: BufferType, ty: Type, ne: [u64; 3], usage: Usage) -> bool {
        let shape = ne.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        assert!(ty.n_bytes([shape[0], shape[1], shape[2], 1]).is_some(), "supports: shape {ne:?} of {ty:?}");
        if [Usage::Rope, Usage::Sinks].contains(&usage) && ty != Type::F32 {
            return false;
        }
        let context = init_context(8);
        let ctx = context.as_ptr();
        let ne = ne.map(|n| i64::try_from(n).expect("a tensor's dimensions fit in i64"));
        let new = |ty: Type, ne0: i64, ne1: i64, ne2: i64| {
            // SAFETY: the context is live, has room for eight tensors and allocates no data.
            unsafe { sys::ggml_new_tensor_3d(ctx, ty.raw(), ne0, ne1, ne2) }
        };
        let weight = new(ty, ne[0], ne[1], ne[2]);
        // A batch of 512 is what llama.cpp asks about.
        let op = match usage {
            Usage::MulMat => {
                let x = new(Type::F32, ne[0], 512, 1);
                // SAFETY: both tensors are of this context and have equal ne0; the weight is contiguous.
                unsafe { sys::ggml_mul_mat(ctx, weight, x) }
            }
            Usage::MulMatId => {
                let (x, ids) = (new(Type::F32, ne[0], 1, 512), new(Type::I32, 1, 512, 1));
                // SAFETY: all of this context; equal ne0, and one matrix for each of 512 tokens.
                unsafe { sys::ggml_mul_mat_id(ctx, weight, x, ids) }
            }
            Usage::AddId => {
                let (x, ids) = (new(Type::F32, ne[0], 1, 512), new(Type::I32, 1, 512, 1));
                // SAFETY: all of this context; equal ne0, and one row for each of 512 tokens.
                unsafe { sys::ggml_add_id(ctx, x, weight, ids) }
            }
            Usage::Sinks => {
                let (x, mask) = (new(Type::F32, 512, 512, ne[0]), std::ptr::null_mut());
                // SAFETY: all of this context; there is a sink for each of the heads, ne2.
                unsafe {
                    let weights = sys::ggml_soft_max_ext(ctx, x, mask, 1.0, 0.0);
                    sys::ggml_soft_max_add_sinks(weights, weight);
                    weights
                }
            }
            Usage::GetRows => {
                let ids = new(Type::I32, 512, 1, 1);
                // SAFETY: a matrix and a vector of I32 of this context.
                unsafe { sys::ggml_get_rows(ctx, weight, ids) }
            }
            Usage::Mul | Usage::Add => {
                let x = new(Type::F32, ne[0], ne[1], 1);
                if usage == Usage::Mul {
                    // SAFETY: equal shapes, of this context.
                    unsafe { sys::ggml_mul(ctx, x, weight) }
                } else {
                    // SAFETY: equal shapes, of this context.
                    unsafe { sys::ggml_add(ctx, x, weight) }
                }
            }
            Usage::Rope => {
                let n_rot = 2 * ne[0];
                let x = new(Type::F32, n_rot, 1, 512);
                let pos = new(Type::I32, 512, 1, 1);
                let n_dims = i32::try_from(n_rot).expect("head sizes are small");
                // SAFETY: positions are one per ne2 of x; the factors have n_dims/2 elements; all of this context.
                unsafe { sys::ggml_rope_ext(ctx, x, pos, weight, n_dims, 0, 0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0) }
            }
        };
        // A buffer of no bytes, so that the device sees which memory the weight would be in.
        // SAFETY: the buffer type lives as long as the process.
        let buffer = unsafe { sys::ggml_backend_buft_alloc_buffer(memory.as_ptr(), 0) };
        if buffer.is_null() {
            return false;
        }
        // SAFETY: weight is live and exclusively ours.
        unsafe { (*weight).buffer = buffer };
        // SAFETY: the device is registered; op is live with its sources.
        let supported = unsafe { sys::ggml_backend_dev_supports_op(self.as_ptr(), op) };
        // SAFETY: the buffer was made above; the context's tensors are not used after this.
        unsafe { sys::ggml_backend_buffer_free(buffer) };
        supported
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A kind of memory that buffers are made in. Buffer types live as long as the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferType {
    ptr: NonNull<sys::ggml_backend_buffer_type>,
}

impl BufferType {
    pub(crate) fn as_ptr(self) -> sys::ggml_backend_buffer_type_t {
        self.ptr.as_ptr()
    }

    /// ggml's name, such as `CPU` or `CPU_REPACK`.
    pub fn name(self) -> String {
        // SAFETY: a buffer type's name is a C string that lives as long as the process.
        let name: *const c_char = unsafe { sys::ggml_backend_buft_name(self.as_ptr()) };
        // SAFETY: as above.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    fn is_host(self) -> bool {
        // SAFETY: the buffer type lives as long as the process.
        unsafe { sys::ggml_backend_buft_is_host(self.as_ptr()) }
    }

    pub(crate) fn from_ptr(ptr: NonNull<sys::ggml_backend_buffer_type>) -> BufferType {
        BufferType { ptr }
    }

    /// Whether buffers take the program's own memory, be it in a layout that only some operations read (CPU_REPACK).
    pub fn in_program_memory(self) -> bool {
        self.is_host() || self.name().starts_with("CPU")
    }

    /// Alignment of tensors in bytes.
    pub fn alignment(self) -> usize {
        // SAFETY: the buffer type lives as long as the process.
        unsafe { sys::ggml_backend_buft_get_alignment(self.as_ptr()) }
    }
}

impl fmt::Debug for BufferType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
