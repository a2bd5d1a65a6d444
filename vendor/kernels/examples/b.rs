use std::time::Instant;
use kernels::*;
struct O<'a>(&'a mut [f32], usize, usize);
impl Out for O<'_> { fn token(&mut self, t: usize) -> &mut [f32] { &mut self.0[t * self.1 + self.2..] } }
fn main() {
    let k: usize = std::env::args().nth(1).map_or(4096, |s| s.parse().unwrap());
    let n: usize = std::env::args().nth(2).map_or(510, |s| s.parse().unwrap());
    let isa = Isa::best();
    for (name, f, b) in [("Q4_0", Format::Q4_0, 18), ("Q4_1", Format::Q4_1, 20), ("Q8_0", Format::Q8_0, 34), ("Q4_K", Format::Q4K, 18)] {
    if name == "Q4_K" && k % 256 != 0 { continue }
    let rows = 1024;
    let run = |cols: bool, gated: bool| {
        let row = k / 32 * b;
        let mut seed = 1u32;
        let data: Vec<u8> = (0..rows * row).map(|i| { seed = seed.wrapping_mul(1664525).wrapping_add(1013904223); if i % b == 1 || i % b == 3 { 0x20 } else { (seed >> 24) as u8 & 0x3f } }).collect();
        let kept: Vec<i32> = (0..k as i32).filter(|i| i % 5 < 3).collect();
        let c = Columns::new(&kept, 1, k);
        let kk = if cols { c.len() } else { k };
        let mut acts = vec![0u8; n * token_bytes(kk)];
        for a in acts.chunks_exact_mut(token_bytes(kk)) { isa.quantize(&vec![0.3; kk], a); }
        let mut out = vec![0f32; n * rows];
        let tokens: Vec<usize> = (0..n).collect();
        let (mut best, mut pk) = (f64::INFINITY, 0.0);
        for _ in 0..5 {
            let s = Instant::now();
            let mut p = 0.0;
            for r in (0..rows).step_by(32) {
                p += isa.multiply(|_, i| Row { bytes: &data[(r + i) * row..][..row], format: f }, gated, 32, k, cols.then_some(&c), Acts::new(&acts, kk), &tokens, &mut O(&mut out, rows, r)).as_secs_f64();
            }
            let t = s.elapsed().as_secs_f64();
            if t < best { best = t; pk = p; }
        }
        (2.0 * (rows * kk * n) as f64 * if gated { 2.0 } else { 1.0 } / best / 1e9, pk / best * 100.0, pk * 3.1e9 / (rows * k) as f64 * 64.0)
    };
    for (cols, gated) in [(false, false), (true, false), (false, true)] {
    let r: Vec<_> = std::thread::scope(|s| { let h: Vec<_> = (0..2).map(|_| s.spawn(move || run(cols, gated))).collect(); h.into_iter().map(|h| h.join().unwrap()).collect() });
    println!("{name} k {k} n {n} cols {cols} gated {gated}: {:.0} GOP/s, pack {:.1}%, {:.1} cycles/64", r[0].0 + r[1].0, r[0].1, r[0].2);
    }}
}
