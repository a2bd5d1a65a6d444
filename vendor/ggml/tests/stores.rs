//! Stores, maps and pages.

mod common;

use std::io::Write;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use common::*;
use ggml::{BufferType, Device, Graph, MAPPED_ALIGNMENT, Map, Pages, Place, Specs, Store, TensorId, Type, Usage};

fn one(ty: Type, ne: [u64; 4], place: Place, maps: Vec<Arc<Map>>) -> (Store, TensorId) {
    let mut specs = Specs::new();
    let id = specs.push(spec(ty, ne, place));
    (Store::new(specs, maps).expect("memory"), id)
}

#[test]
fn specs_name_the_tensors_of_their_store() {
    let mut specs = Specs::new();
    assert_eq!(specs.len(), 0);
    let ids = [1, 2, 3].map(|n| specs.push(spec(Type::F32, [n, 1, 1, 1], Place::Buffer(cpu()))));
    assert_eq!(specs.len(), 3);
    assert!(specs.iter().map(|s| s.ne[0]).eq([1, 2, 3]));
    let store = Store::new(specs, Vec::new()).unwrap();
    assert!(ids.iter().zip([4, 8, 12]).all(|(&id, n)| store.owns(id) && store.n_bytes(id) == n));
    let (_, other) = one(Type::F32, [1, 1, 1, 1], Place::Buffer(cpu()), Vec::new());
    assert!(!store.owns(other) && !ids.contains(&other));
}

#[test]
fn tensors_of_another_store_are_refused() {
    let (mut store, _) = one(Type::F32, [4, 1, 1, 1], Place::Buffer(cpu()), Vec::new());
    let (_, id) = one(Type::F32, [4, 1, 1, 1], Place::Buffer(cpu()), Vec::new());
    assert_panics("n_bytes: the tensor is of another store", || ignore(store.n_bytes(id)));
    assert_panics("zero: the tensor is of another store", || store.zero(id, 0, 4));
    assert_panics("read: the tensor is of another store", || store.read(id, 0, &mut [0; 4]));
    assert_panics("write: the tensor is of another store", || store.write(id, 0, &[0; 4]));
    assert_panics("fill: the tensor is of another store", || {
        store.fill(&[(id, &[0; 16])], 1, &mut |_| ControlFlow::Continue(()));
    });
}

#[test]
fn bytes_go_in_and_out() {
    let mut specs = Specs::new();
    let ids: Vec<_> = (1..=20).map(|n| specs.push(spec(Type::F32, [n, 3, 1, 1], Place::Buffer(cpu())))).collect();
    let mut store = Store::new(specs, Vec::new()).unwrap();
    let data: Vec<Vec<u8>> = ids.iter().enumerate().map(|(i, &id)| vec![i as u8 + 1; store.n_bytes(id)]).collect();
    let total: usize = data.iter().map(Vec::len).sum();
    let jobs: Vec<_> = ids.iter().copied().zip(data.iter().map(|d| &d[..])).collect();
    for n_threads in [0, 1, 3, 100] {
        let mut sums = Vec::new();
        assert!(store.fill(&jobs, n_threads, &mut |sum| {
            sums.push(sum);
            ControlFlow::Continue(())
        }));
        assert!(sums.len() == 20 && sums.is_sorted() && sums.last() == Some(&total));
    }
    for (&id, data) in ids.iter().zip(&data) {
        let mut got = vec![0; data.len()];
        store.read(id, 0, &mut got);
        assert_eq!(&got, data);
    }
    let id = ids[1];
    store.write(id, 4, &[9; 8]);
    store.zero(id, 20, 4);
    let mut got = [0; 24];
    store.read(id, 0, &mut got);
    assert_eq!(got, [2, 2, 2, 2, 9, 9, 9, 9, 9, 9, 9, 9, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0]);
    store.read(id, 24, &mut []);
    // A copy that is stopped says so.
    assert!(!store.fill(&jobs, 1, &mut |_| ControlFlow::Break(())));
}

#[test]
fn bytes_beyond_a_tensor_are_refused() {
    let (mut store, id) = one(Type::F32, [4, 1, 1, 1], Place::Buffer(cpu()), Vec::new());
    for (offset, length) in [(0, 17), (16, 1), (usize::MAX, 1), (9, 8)] {
        assert_panics("zero:", || store.zero(id, offset, length));
        assert_panics("read:", || store.read(id, offset, &mut vec![0; length]));
        assert_panics("write:", || store.write(id, offset, &vec![0; length]));
    }
    let mut fill = |data: &[(TensorId, &[u8])]| ignore(store.fill(data, 1, &mut |_| ControlFlow::Continue(())));
    assert_panics("fill: length", || fill(&[(id, &[0; 15])]));
    assert_panics("fill: length", || fill(&[(id, &[0; 17])]));
    assert_panics("fill: a tensor is given twice", || fill(&[(id, &[0; 16]), (id, &[0; 16])]));
    let store = Rc::new(store);
    Graph::build(4, |b| ignore(b.leaf(&store, id)));
    let mut store = Rc::into_inner(store).unwrap();
    assert_panics("fill: a graph uses the store", || {
        store.fill(&[(id, &[0; 16])], 1, &mut |_| ControlFlow::Continue(()));
    });
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let make = |ty, ne| ignore(one(ty, ne, Place::Buffer(cpu()), Vec::new()));
    for ne in
        [[0, 1, 1, 1], [4, 0, 1, 1], [u64::MAX, 1, 1, 1], [1 << 20, 1 << 20, 1 << 20, 1 << 20], [1 << 45, 1, 1, 1]]
    {
        assert_panics("tensor t: shape", || make(Type::F32, ne));
    }
    assert_panics("tensor t: shape", || make(Type::Q4_0, [33, 1, 1, 1]));
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let mut specs = Specs::new();
    for _ in 0..3 {
        specs.push(spec(Type::F32, [1 << 44, 1, 1, 1], Place::Buffer(cpu())));
    }
    let error = Store::new(specs, Vec::new()).unwrap_err();
    assert_eq!((&*error.buffer_type, error.bytes), ("CPU", 3 << 46));
}

#[test]
fn mapped_tensors_are_used_in_place_and_read_only() {
    let values: Vec<f32> = (0..32).map(|i| i as f32).collect();
    let map = Arc::new(Map::of(&bytes(&values)).unwrap());
    let (mut store, id) = one(Type::F32, [4, 2, 1, 1], Place::Mapped(Device::cpu(), 0, MAPPED_ALIGNMENT), vec![map]);
    let mut got = [0; 32];
    store.read(id, 0, &mut got);
    assert_eq!(got.to_vec(), bytes(&values[8..16]));
    assert_panics("zero: a mapped tensor is read-only", || store.zero(id, 0, 4));
    assert_panics("write: a mapped tensor is read-only", || store.write(id, 0, &[0; 4]));
    assert_panics("fill: a mapped tensor is read-only", || {
        store.fill(&[(id, &[0; 32])], 1, &mut |_| ControlFlow::Continue(()));
    });
    let store = Rc::new(store);
    assert_panics("set_rows: weights may be mapped", || {
        Graph::build(8, |b| {
            let cells = b.view(b.leaf(&store, id), [4, 1, 1, 1], [16, 16, 16], 0);
            b.set_rows(cells, f32s(b, [4, 1, 1, 1]), input(b, Type::I64, [1, 1, 1, 1]));
        });
    });
    let (mut executor, (graph, (x, y))) = (
        executor(),
        Graph::build(8, |b| {
            let (x, slot) = b.input("x", Type::F32, [4, 1, 1, 1]);
            (slot, b.output(b.mul_mat(b.leaf(&store, id), x)))
        }),
    );
    let mut schedule = executor.schedule();
    schedule.load(graph).unwrap();
    schedule.set(x, &[1.0f32, 0.0, 0.0, 1.0]);
    executor.compute(&mut schedule, 1).unwrap();
    let mut sums = [0.0f32; 2];
    schedule.get(y, &mut sums);
    assert_eq!(sums, [8.0 + 11.0, 12.0 + 15.0]);
}

#[test]
fn maps_that_do_not_fit_are_refused() {
    let make = |ne, map, offset| {
        let maps = vec![Arc::new(Map::of(&[0; 256]).unwrap())];
        ignore(one(Type::F32, ne, Place::Mapped(Device::cpu(), map, offset), maps));
    };
    make([16, 1, 1, 1], 0, 192);
    assert_panics("is in map 1, which is not there", || make([1, 1, 1, 1], 1, 0));
    assert_panics("is beyond its map", || make([17, 1, 1, 1], 0, 192));
    assert_panics("is beyond its map", || make([1, 1, 1, 1], 0, 1 << 40));
    assert_panics("end overflows", || make([1, 1, 1, 1], 0, usize::MAX - 1));
    assert_panics("is not aligned", || make([1, 1, 1, 1], 0, 4));
    assert_panics("is not aligned", || {
        let maps = vec![Arc::new(Map::of(&[0; 256]).unwrap())];
        let mut specs = Specs::new();
        for offset in [0, 40] {
            specs.push(spec(Type::F32, [1, 1, 1, 1], Place::Mapped(Device::cpu(), 0, offset)));
        }
        ignore(Store::new(specs, maps));
    });
}

/// Memory in which this machine's CPU keeps Q4_0 in a layout of its own.
fn repack() -> Option<BufferType> {
    let fits = |&kind: &BufferType| Device::cpu().supports(kind, Type::Q4_0, [64, 16, 1], Usage::MulMat);
    Device::cpu().extra_buffer_types().into_iter().find(fits)
}

#[test]
fn a_layout_of_its_own_is_for_mul_mat_only() {
    let Some(kind) = repack() else { return };
    let (mut store, id) = one(Type::Q4_0, [64, 16, 1, 1], Place::Buffer(kind), Vec::new());
    let values: Vec<f32> = (0..64 * 16).map(|i| ((i * 7) % 15) as f32 - 7.0).collect();
    let data = ggml::quantize(Type::Q4_0, &values, 64);
    assert!(store.fill(&[(id, &data)], 2, &mut |_| ControlFlow::Continue(())));
    store.write(id, 0, &data);
    assert_panics("write: the tensor is in a layout of its own", || store.write(id, 0, &data[..18]));
    assert_panics("read: the tensor is in a layout of its own", || store.read(id, 0, &mut [0; 18]));
    assert_panics("zero: the tensor is in a layout of its own", || store.zero(id, 0, 18));
    let store = Rc::new(store);
    let (plain, plain_id) = zeros(&[(Type::Q4_0, [64, 16, 1, 1])]);
    plain.write(plain_id[0], 0, &data);
    let refused = |expected, f: &dyn for<'g> Fn(&ggml::Builder<'g>, ggml::Tensor<'g>)| {
        assert_panics(expected, || ignore(Graph::build(8, |b| f(b, b.leaf(&store, id)))));
    };
    refused("get_rows: a tensor is in a layout", &|b, w| ignore(b.get_rows(w, input(b, Type::I32, [1, 1, 1, 1]))));
    refused("view: a tensor is in a layout", &|b, w| ignore(b.view(w, [64, 8, 1, 1], [36, 288, 288], 0)));
    refused("reshape: a tensor is in a layout", &|b, w| ignore(b.reshape(w, [64, 8, 2, 1])));
    refused("permute: a tensor is in a layout", &|b, w| ignore(b.permute(w, [0, 2, 1, 3])));
    refused("cont: a tensor is in a layout", &|b, w| ignore(b.cont(w, [64, 16, 1, 1])));
    refused("concat: a tensor is in a layout", &|b, w| ignore(b.concat(w, w, 1)));
    refused("output: the tensor is in a layout", &|b, w| ignore(b.output(w)));

    let mut executor = executor();
    let x: Vec<f32> = (0..128).map(|i| (i % 5) as f32).collect();
    let results = [(&store, id), (&plain, plain_id[0])].map(|(store, id)| {
        let mut schedule = executor.schedule();
        let (graph, (input, output)) = Graph::build(8, |b| {
            let (x, slot) = b.input("x", Type::F32, [64, 2, 1, 1]);
            (slot, b.output(b.mul_mat(b.leaf(store, id), x)))
        });
        schedule.load(graph).unwrap();
        schedule.set(input, &x);
        executor.compute(&mut schedule, 2).unwrap();
        let mut y = [0.0f32; 32];
        schedule.get(output, &mut y);
        y
    });
    assert!(results[0].iter().zip(&results[1]).all(|(a, b)| (a - b).abs() < 1.0), "{results:?}");
    for (ty, ne) in [(Type::F32, [64, 16, 1, 1]), (Type::Q4_0, [64, 16, 1, 2]), (Type::Q4_0, [64, 3, 1, 1])] {
        assert_panics("has no layout for", || ignore(one(ty, ne, Place::Buffer(kind), Vec::new())));
    }
}

#[test]
fn devices_are_asked_for_shapes_that_can_be() {
    let supports = |ty, ne, usage| Device::cpu().supports(cpu(), ty, ne, usage);
    for usage in [Usage::MulMat, Usage::MulMatId, Usage::GetRows, Usage::Mul, Usage::Add, Usage::Rope] {
        assert!(supports(Type::F32, [64, 2, 1], usage));
        assert_panics("supports: shape", || ignore(supports(Type::Q4_0, [33, 2, 1], usage)));
        assert_panics("supports: shape", || ignore(supports(Type::F32, [0, 2, 1], usage)));
        assert_panics("supports: shape", || ignore(supports(Type::F32, [u64::MAX, 2, 1], usage)));
    }
    assert!(!supports(Type::F16, [64, 1, 1], Usage::Rope));
}

#[test]
fn a_map_is_the_file() {
    let path = std::env::temp_dir().join(format!("ggml-map-{}", std::process::id()));
    let contents: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
    std::fs::write(&path, &contents).unwrap();
    let map = Map::new(std::fs::File::open(&path).unwrap()).unwrap();
    assert_eq!(&map[..], contents);
    map.release(0..10_000);
    map.release(5000..usize::MAX);
    #[allow(clippy::reversed_empty_ranges, reason = "nothing to release")]
    map.release(9000..10);
    assert_eq!(&map[..], contents);
    assert!(!map.changed());
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    assert!(map.changed());
    drop(map);
    std::fs::write(&path, b"").unwrap();
    assert!(Map::new(std::fs::File::open(&path).unwrap()).unwrap().is_empty());
    std::fs::remove_file(&path).unwrap();
    // Bytes of no file could not be read again.
    let map = Map::of(&[7; 20_000]).unwrap();
    map.release(0..20_000);
    assert!(map.iter().all(|&b| b == 7));
    assert!(!map.changed());
}

#[test]
fn pages_are_zeroed_and_of_their_length() {
    for len in [0, 1, 5000, 1 << 22] {
        let mut pages = Pages::new(len).unwrap();
        assert!(pages.len() == len && pages.iter().all(|&b| b == 0));
        pages.fill(7);
        assert!(pages.iter().all(|&b| b == 7));
    }
    assert!(Pages::new(1 << 60).is_err());
}
