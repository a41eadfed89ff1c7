use std::collections::HashMap;
use std::ops::ControlFlow;

use linfa::ParamGuard as _;
use ndarray::Array2;
use rand::SeedableRng as _;

use super::*;
use crate::head::{ClassWeights, Examples, HeadParams, Schedule, fit};
use crate::store::fixture;

/// A matrix as a source.
struct Source(Array2<f32>);

impl FeatureSource for Source {
    fn width(&self) -> usize {
        self.0.ncols()
    }

    fn read(&self, rows: &[usize], out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
        assert!(rows.is_sorted());
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(self.width())) {
            out.copy_from_slice(self.0.row(row).to_slice().ok_or("no rows")?);
        }
        Ok(())
    }
}

struct Case {
    source: Source,
    labels: Vec<Option<i32>>,
    train: Vec<usize>,
    holdout: Vec<usize>,
    classes: Vec<String>,
}

const WIDTH: usize = 24;

impl Case {
    /// 6,000 rows of 5 classes, of which every fifth is held out, in windows of 1,111.
    fn new() -> Self {
        let values = (0..6000).flat_map(|row| fixture::features(row, fixture::class(row, 5), WIDTH)).collect();
        let (holdout, train) = (0..6000).partition(|row| row % 5 == 3);
        Self {
            source: Source(Array2::from_shape_vec((6000, WIDTH), values).unwrap()),
            labels: (0..6000).map(|row| i32::try_from(fixture::class(row, 5)).ok()).collect(),
            train,
            holdout,
            classes: fixture::names(5),
        }
    }

    fn streamed(&self) -> Streamed<'_> {
        let Self { source, labels, train, holdout, classes } = self;
        Streamed { source, labels, train, holdout, refit: holdout, classes, memory: 2 * 1111 * WIDTH * 4 }
    }

    fn examples(&self) -> Examples<'_> {
        let Self { source, labels, train, holdout, classes } = self;
        Examples { x: source.0.view(), labels, train, holdout, refit: holdout, classes }
    }
}

fn go_on(_: &crate::run::EpochRecord) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn losses(fitted: &Fitted) -> Vec<[Option<u64>; 2]> {
    let bits = |record: &crate::run::EpochRecord| [Some(record.loss.to_bits()), record.val_loss.map(f64::to_bits)];
    fitted.history.iter().map(bits).collect()
}

#[test]
fn in_order_it_is_the_fit_in_memory_to_the_bit() {
    let case = Case::new();
    let base = HeadParams { epochs: 3, shuffle: false, ..HeadParams::default() };
    let cases = [
        base.clone(),
        HeadParams { batch_size: 37, standardize: Some(true), dropout: Some(0.3), ..base.clone() },
        HeadParams { batch_size: 700, schedule: Some(Schedule::Cosine), patience: Some(1), ..base.clone() },
        HeadParams { batch_size: 1000, class_weights: Some(ClassWeights::Balanced), ..base.clone() },
    ];
    for params in cases {
        let params = params.check().unwrap();
        let memory = fit(&params, &case.examples(), &mut go_on).unwrap();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let streamed = pool.install(|| fit_streamed(&params, &case.streamed(), None, &mut go_on)).unwrap();
            assert_eq!((&streamed.head, losses(&streamed)), (&memory.head, losses(&memory)), "{params:?}");
            assert_eq!(streamed.best_epoch, memory.best_epoch);
        }
    }
}

#[test]
fn lbfgs_finds_the_optimum_that_it_finds_in_memory() {
    let case = Case::new();
    let base = HeadParams { solver: Solver::Lbfgs, tolerance: Some(1e-6), ..HeadParams::default() };
    let cases = [
        base.clone(),
        HeadParams { standardize: Some(false), l2: Some(1e-3), ..base.clone() },
        HeadParams { class_weights: Some(ClassWeights::Balanced), label_smoothing: Some(0.1), ..base.clone() },
    ];
    for params in cases {
        let params = params.check().unwrap();
        let memory = fit(&params, &case.examples(), &mut go_on).unwrap();
        let streamed = fit_streamed(&params, &case.streamed(), None, &mut go_on).unwrap();
        let far = |(one, other): (&f32, &f32)| (one - other).abs();
        let kernel = memory.head.kernel();
        let farthest = kernel.iter().zip(streamed.head.kernel()).map(far).fold(0.0, f32::max);
        assert!(farthest < 1e-5 && kernel.iter().any(|weight| weight.abs() > 0.1), "{farthest} apart with {params:?}");
        let bias = memory.head.bias();
        assert!(bias.iter().zip(streamed.head.bias()).map(far).fold(0.0, f32::max) < 1e-5);
        assert_eq!((streamed.converged, streamed.head.standardization()), (Some(true), memory.head.standardization()));
        let [one, other] = [&memory, &streamed].map(|fitted| fitted.history.last().unwrap().val_loss.unwrap());
        assert!((one - other).abs() < 1e-6, "{one} in memory, {other} streamed");
    }
}

#[test]
fn shuffled_every_row_is_taken_once_an_epoch_and_neighbours_are_apart() {
    let case = Case::new();
    let labels: Vec<usize> = case.labels.iter().map(|label| label.unwrap() as usize).collect();
    let listed = Listed { labels: &labels, train: &case.train, holdout: &case.holdout, refit: &[], classes: 5 };
    let stream = Stream { source: &case.source, listed, window: 1111, standardization: None, windows: Mutex::default() };
    let bits = |row: ndarray::ArrayView1<'_, f32>| row.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
    let rows: HashMap<Vec<u32>, usize> = (0..6000).map(|row| (bits(case.source.0.row(row)), row)).collect();
    let pass = |seed: Option<u64>| {
        let (mut taken, mut sizes) = (Vec::new(), Vec::new());
        let mut act = |part: Part<'_>| {
            sizes.push(part.order.len());
            for &index in part.order {
                let row = rows[&bits(part.features.matrix().row(index))];
                assert_eq!(part.labels[index], labels[row]);
                taken.push(row);
            }
            Ok(())
        };
        stream.each_part(&case.train, seed.map(ChaCha8Rng::seed_from_u64), 100, &mut act).unwrap();
        assert!(sizes.len() > 4 && sizes[..sizes.len() - 1].iter().all(|size| size % 100 == 0), "{sizes:?}");
        taken
    };
    assert_eq!(pass(None), case.train);
    let (one, other) = (pass(Some(1)), pass(Some(2)));
    assert_eq!(one, pass(Some(1)));
    assert_ne!(one, other);
    let mut sorted = one.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, case.train);
    let near = one.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 10).count();
    assert!(near < 200, "{near} of 4799 rows are followed by a neighbour");
}

#[test]
fn shuffled_it_learns_what_a_fit_in_memory_learns() {
    let case = Case::new();
    let params = HeadParams { epochs: 8, learning_rate: 0.01, ..HeadParams::default() }.check().unwrap();
    let memory = fit(&params, &case.examples(), &mut go_on).unwrap();
    let streamed = fit_streamed(&params, &case.streamed(), None, &mut go_on).unwrap();
    let [one, other] = [&memory, &streamed].map(|fitted| fitted.history[7].val_loss.unwrap());
    assert!((one - other).abs() < 0.02 && one < 1.2, "{one} in memory, {other} streamed; 1.61 is chance");
    assert_ne!(memory.head, streamed.head, "the order is another one");
}

#[test]
fn a_stopped_fit_goes_on_to_the_same_bits() {
    let case = Case::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(Checkpoints::FILE);
    let params = HeadParams { epochs: 5, standardize: Some(true), patience: Some(4), ..HeadParams::default() }.check().unwrap();
    let whole = fit_streamed(&params, &case.streamed(), None, &mut go_on).unwrap();
    let mut stop = |record: &crate::run::EpochRecord| {
        if record.epoch == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut checkpoints = Checkpoints::new(&path, "key", &crate::events::ignore);
    let stopped = fit_streamed(&params, &case.streamed(), Some(&mut checkpoints), &mut stop).unwrap();
    assert_eq!(stopped.history.len(), 2);
    let resumed = fit_streamed(&params, &case.streamed(), Some(&mut checkpoints), &mut go_on).unwrap();
    assert_eq!((resumed.resumed_after, &resumed.head, losses(&resumed)), (2, &whole.head, losses(&whole)));
}

#[test]
fn what_cannot_be_is_refused() {
    let case = Case::new();
    let refused = |params: HeadParams, streamed: Streamed<'_>| {
        fit_streamed(&params.check().unwrap(), &streamed, None, &mut go_on).unwrap_err().to_string()
    };
    let error = refused(HeadParams { solver: Solver::Linfa, ..HeadParams::default() }, case.streamed());
    assert!(
        error.starts_with("head.solver = linfa: expected adam, lbfgs or ridge") && error.contains("raise head.memory"),
        "{error}"
    );
    let error = refused(HeadParams { batch_size: 2000, ..HeadParams::default() }, case.streamed());
    assert!(error.starts_with("head.memory = ") && error.contains("1,088 rows"), "{error}");
    struct Broken;
    impl FeatureSource for Broken {
        fn width(&self) -> usize {
            WIDTH
        }

        fn read(&self, rows: &[usize], _: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
            if rows.contains(&5000) { Err("the disk is gone".into()) } else { Ok(()) }
        }
    }
    for solver in [Solver::Adam, Solver::Lbfgs] {
        let error = refused(HeadParams { solver, ..HeadParams::default() }, Streamed { source: &Broken, ..case.streamed() });
        assert_eq!(error, "the disk is gone");
    }
    let error = refused(HeadParams::default(), Streamed { train: &[], ..case.streamed() });
    assert!(error.contains("no row is left for training"), "{error}");
}

#[test]
fn least_squares_in_passes_is_that_in_memory() {
    let case = Case::new();
    // The smallest window there is hands out nothing at first.
    let narrow = |memory| Streamed { memory, ..case.streamed() };
    let params = HeadParams { solver: Solver::Ridge, ..HeadParams::default() }.check().unwrap();
    let least = fit_streamed(&params, &narrow(2 * 1088 * WIDTH * 4), None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(least.ridge.unwrap().statistics.pivot.iter().any(|&pivot| pivot != 0.0));
    for (l2, refit) in [(None, None), (Some(0.1), Some(true))] {
        let params = HeadParams { solver: Solver::Ridge, l2, refit, ..HeadParams::default() }.check().unwrap();
        let mut go_on = |_: &_| ControlFlow::Continue(());
        let streamed = fit_streamed(&params, &case.streamed(), None, &mut go_on).unwrap();
        let expected = fit(&params, &case.examples(), &mut go_on).unwrap();
        assert!((streamed.l2 / expected.l2 - 1.0).abs() < 1e-12);
        for (found, expected) in streamed.head.kernel().iter().zip(expected.head.kernel()) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        let (found, expected) = (streamed.ridge.unwrap(), expected.ridge.unwrap());
        let answers = found.left_out.unwrap() - expected.left_out.unwrap();
        assert!(answers.iter().all(|difference| difference.abs() < 1e-4));
        assert_eq!(found.statistics.count(), expected.statistics.count());
    }
}
