//! The two products that training spends its time on.
//!
//! Written so that the compiler vectorises across pixels. AVX2 changes the speed and not one bit: the order of the
//! additions is in the code, and Rust never fuses a multiplication with an addition.

/// Pixels side by side in registers; every map of the network is a multiple of it.
const LANES: usize = 16;
/// Rows side by side in registers; every layer's width is a multiple of it.
const ROWS: usize = 4;

/// `y += w x`: `w` is `[outputs, inner]` with the given strides, `x` `[inner, area]`, `y` `[outputs, area]`.
pub fn multiply(w: &[f32], strides: (usize, usize), x: &[f32], y: &mut [f32], inner: usize, area: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn wide(w: &[f32], strides: (usize, usize), x: &[f32], y: &mut [f32], inner: usize, area: usize) {
            multiply_any(w, strides, x, y, inner, area);
        }
        // SAFETY: the processor has AVX2, checked above.
        return unsafe { wide(w, strides, x, y, inner, area) };
    }
    multiply_any(w, strides, x, y, inner, area);
}

#[inline(always)]
fn multiply_any(w: &[f32], (row, column): (usize, usize), x: &[f32], y: &mut [f32], inner: usize, area: usize) {
    let outputs = y.len() / area;
    let mut panel = vec![[0.0f32; LANES]; inner];
    for start in (0..area).step_by(LANES) {
        for (k, lanes) in panel.iter_mut().enumerate() {
            lanes.copy_from_slice(&x[k * area + start..][..LANES]);
        }
        for output in (0..outputs).step_by(ROWS) {
            let mut sums = [[0.0f32; LANES]; ROWS];
            for (k, lanes) in panel.iter().enumerate() {
                for (r, sum) in sums.iter_mut().enumerate() {
                    let weight = w[(output + r) * row + k * column];
                    for lane in 0..LANES {
                        sum[lane] += weight * lanes[lane];
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                let target = &mut y[(output + r) * area + start..][..LANES];
                target.iter_mut().zip(sum).for_each(|(value, sum)| *value += sum);
            }
        }
    }
}

/// `w += a x^T`: `a` is `[outputs, area]`, `x` `[inner, area]`, `w` `[outputs, inner]`.
pub fn outer(a: &[f32], x: &[f32], w: &mut [f32], inner: usize, area: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn wide(a: &[f32], x: &[f32], w: &mut [f32], inner: usize, area: usize) {
            outer_any(a, x, w, inner, area);
        }
        // SAFETY: the processor has AVX2, checked above.
        return unsafe { wide(a, x, w, inner, area) };
    }
    outer_any(a, x, w, inner, area);
}

#[inline(always)]
fn outer_any(a: &[f32], x: &[f32], w: &mut [f32], inner: usize, area: usize) {
    for (rows, targets) in a.chunks_exact(ROWS * area).zip(w.chunks_exact_mut(ROWS * inner)) {
        for (k, x) in x.chunks_exact(area).enumerate() {
            let mut sums = [[0.0f32; LANES]; ROWS];
            for start in (0..area).step_by(LANES) {
                let x = &x[start..][..LANES];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let a = &rows[r * area + start..][..LANES];
                    for lane in 0..LANES {
                        sum[lane] += a[lane] * x[lane];
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                targets[r * inner + k] += sum.iter().sum::<f32>();
            }
        }
    }
}
