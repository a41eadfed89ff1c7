use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use linfa::ParamGuard as _;
use ndarray::{Array1, Array2};

use super::*;
use crate::events::Event;
use crate::head::fit::tests::{Small, assert_near, weights};
use crate::head::{ClassWeights, Examples, Fitted, HeadParams, Schedule, fit, fit_from, fit_resumable};

fn go_on(_: &EpochRecord) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn adamw_smoothing_class_weights_and_l2_take_the_steps_of_keras() {
    // Keras 3.15.1: AdamW(0.05, weight_decay=0.5) without decay of the bias, CategoricalCrossentropy(label_smoothing=0.1),
    // kernel_regularizer=L2(0.05 / 2), class_weight, batches of 4, 3 epochs.
    let params = HeadParams {
        epochs: 3,
        batch_size: 4,
        learning_rate: 0.05,
        shuffle: false,
        weight_decay: Some(0.5),
        label_smoothing: Some(0.1),
        l2: Some(0.05),
        class_weights: Some(ClassWeights::Each(vec![0.5, 2.0, 1.25])),
        ..HeadParams::default()
    };
    let small = Small::new();
    let Fitted { head, history, .. } = fit_from(&params.check().unwrap(), &small.examples(), &weights(), &mut go_on).unwrap();
    let kernel = [
        [-0.498_865_4, 0.227_978, 0.065_604_7],
        [-0.197_244_7, -0.038_423_2, 0.199_073],
        [-0.077_769_4, 0.168_911_4, -0.048_651_7],
        [0.007_977_2, -0.121_965_2, 0.052_611_2],
        [-0.209_424_5, 0.026_485_9, 0.050_358_8],
    ];
    assert_near(head.kernel(), kernel.into_iter().flatten(), 1e-5);
    assert_near(head.bias(), [-0.257_506_1, 0.076_367_1, -0.002_998_8], 1e-5);
    // The loss that is reported is the plain cross-entropy, whatever is minimized.
    assert!((history[2].val_loss.unwrap() - 1.221_132_5).abs() < 1e-5, "{:?}", history[2]);
}

#[test]
fn dropout_and_smoothing_are_for_training_alone() {
    let small = Small::new();
    let params = HeadParams { dropout: Some(0.5), label_smoothing: Some(0.3), ..HeadParams::default() };
    let fitted = small.fit(params.clone()).unwrap();
    let logits = fitted.head.logits(small.x.select(ndarray::Axis(0), &small.holdout).view()).unwrap();
    let labels: Vec<_> = small.holdout.iter().map(|&row| small.labels[row]).collect();
    let score = crate::evaluate::score(logits.view(), &labels, &small.classes).unwrap().unwrap();
    assert!((score.loss - fitted.history[9].val_loss.unwrap()).abs() < 1e-9);
    let other = small.fit(HeadParams { dropout: Some(0.4), ..params.clone() }).unwrap();
    assert_ne!(fitted.head, other.head);
    assert_eq!(fitted.head, small.fit(params).unwrap().head);
}

#[test]
fn the_learning_rate_of_an_epoch_is_that_of_its_last_step() {
    // 18 rows in batches of 6: three steps an epoch.
    let params = HeadParams { epochs: 4, batch_size: 6, warmup: Some(0.5), learning_rate: 0.6, ..HeadParams::default() };
    let rates: Vec<_> = Small::new().fit(params).unwrap().history.iter().map(|record| record.learning_rate.unwrap()).collect();
    assert_eq!(rates, [0.6 * 3.0 / 6.0, 0.6, 0.6, 0.6]);
}

#[test]
fn early_stopping_gives_the_head_of_the_best_epoch() {
    let small = Small::new();
    let base = HeadParams { epochs: 200, learning_rate: 0.2, batch_size: 4, ..HeadParams::default() };
    let all = small.fit(base.clone()).unwrap();
    let fitted = small.fit(HeadParams { patience: Some(3), ..base.clone() }).unwrap();
    let (best, ran) = (fitted.best_epoch.unwrap(), fitted.history.len());
    assert_eq!(ran, best + 3, "it stopped three epochs after the best");
    assert!(ran < 200);
    let losses = |upto: usize| all.history[..upto].iter().map(|record| record.val_loss.unwrap());
    let lowest = losses(ran).fold(f64::INFINITY, f64::min);
    assert_eq!(all.history[best - 1].val_loss, Some(lowest));
    assert_eq!(fitted.head, small.fit(HeadParams { epochs: best, ..base.clone() }).unwrap().head);
    // The best weights are kept when no patience is lost, too.
    let short = small.fit(HeadParams { epochs: best + 1, patience: Some(100), ..base.clone() }).unwrap();
    assert_eq!((short.history.len(), short.best_epoch, short.head), (best + 1, Some(best), fitted.head));
    let mut alone = Small::new();
    alone.holdout.clear();
    let error = alone.fit(HeadParams { patience: Some(3), ..base }).unwrap_err().to_string();
    assert!(error.starts_with("head.patience = 3: expected rows held out") && error.contains("validation_split"), "{error}");
}

#[test]
fn large_batches_give_the_same_bits_on_any_number_of_threads() {
    let x = Array2::from_shape_fn((1400, 67), |(row, feature)| ((row * 37 + feature * 101) % 97) as f32 / 97.0);
    let labels: Vec<_> = (0..1400).map(|row| Some((row * 7) % 5)).collect();
    let classes: Vec<String> = (0..5).map(|class| class.to_string()).collect();
    let (train, holdout): (Vec<usize>, Vec<usize>) = (0..1400).partition(|&row| row % 5 > 0);
    let examples =
        Examples { x: x.view(), labels: &labels, train: &train, holdout: &holdout, refit: &holdout, classes: &classes };
    for (batch_size, dropout, standardize) in
        [(300, None, false), (1120, Some(0.3), true), (1050, None, true), (129, Some(0.3), false)]
    {
        let with = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let params =
                HeadParams { epochs: 3, batch_size, dropout, standardize: Some(standardize), seed, ..HeadParams::default() };
            let fitted = pool.install(|| fit(&params.check().unwrap(), &examples, &mut go_on)).unwrap();
            (fitted.head, fitted.history[2].loss.to_bits())
        };
        let one = with(1, 7);
        assert_eq!(one, with(2, 7));
        assert_eq!(one, with(5, 7));
        assert_ne!(one.0, with(1, 8).0);
    }
}

#[test]
fn hard_features_give_a_finite_head_or_an_error_with_a_remedy() {
    type Change = fn(&mut Small);
    let hard: [(&str, Change); 7] = [
        ("scaled 1e-12", |small| small.x.mapv_inplace(|value| value * 1e-12)),
        ("scaled 1e12", |small| small.x.mapv_inplace(|value| value * 1e12)),
        ("scaled 1e30", |small| small.x.mapv_inplace(|value| value * 1e30)),
        ("constant feature", |small| small.x.column_mut(0).fill(5.0)),
        ("duplicate features", |small| small.x = Array2::from_shape_fn((23, 5), |(row, _)| ((row * 7) % 11) as f32)),
        ("more classes than rows", |small| small.classes = (0..40).map(|class| class.to_string()).collect()),
        ("one row", |small| small.train = vec![0]),
    ];
    for (name, change) in hard {
        for (standardize, batch_size) in [(false, 4), (true, 4), (false, 100)] {
            let mut small = Small::new();
            change(&mut small);
            let params = HeadParams { standardize: Some(standardize), batch_size, ..HeadParams::default() };
            match small.fit(params) {
                Ok(fitted) => {
                    // `Head` itself refuses weights that are not finite.
                    assert!(name != "one row" && fitted.history.iter().all(|record| record.loss.is_finite()), "{name}");
                    assert!(!standardize || fitted.history[9].loss < fitted.history[0].loss, "{name}: standardized, it learns");
                }
                Err(HeadError::OneClass { rows: 1, .. }) => assert_eq!(name, "one row"),
                Err(error) => assert!(error.to_string().contains("head.standardize = true") && !standardize, "{name}: {error}"),
            }
        }
    }
}

/// Everything that a checkpoint must carry: an order that changes, dropout, a schedule, early stopping.
fn everything() -> HeadParams {
    HeadParams {
        epochs: 30,
        batch_size: 4,
        learning_rate: 0.03,
        dropout: Some(0.2),
        weight_decay: Some(0.01),
        schedule: Some(Schedule::Cosine),
        warmup: Some(0.1),
        patience: Some(8),
        ..HeadParams::default()
    }
}

/// Fits with checkpoints in `path`, stopped after so many epochs; tells what was said too.
fn fit_with(path: &Path, key: &str, params: HeadParams, stop_after: usize) -> (Fitted, Vec<String>) {
    let said = Mutex::new(Vec::new());
    let observe = |event: Event<'_>| {
        if let Event::Noted(text) | Event::Warned(text) = event {
            said.lock().unwrap().push(text);
        }
    };
    let mut checkpoints = Checkpoints::new(path, key, &observe);
    let mut stop = |record: &EpochRecord| {
        if record.epoch == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let fitted = fit_resumable(&params.check().unwrap(), &Small::new().examples(), &mut checkpoints, &mut stop).unwrap();
    (fitted, said.into_inner().unwrap())
}

/// A history without the seconds.
fn figures(fitted: &Fitted) -> Vec<String> {
    fitted.history.iter().map(|record| format!("{:?}", EpochRecord { seconds: 0.0, ..record.clone() })).collect()
}

#[test]
fn a_fit_that_was_stopped_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(Checkpoints::FILE);
    // A seed with which early stopping is on trial.
    let stops_early = |fitted: &Fitted| fitted.best_epoch > Some(1) && fitted.history.len() < 30;
    let seeds = (0..100).map(|seed| HeadParams { seed, ..everything() });
    let (params, whole) =
        seeds.map(|params| (params.clone(), Small::new().fit(params).unwrap())).find(|(_, fitted)| stops_early(fitted)).unwrap();
    let (end, best) = (whole.history.len(), whole.best_epoch.unwrap());
    assert_eq!(end, best + 8);
    for first in [1, best, best + 1, end - 1, end] {
        let (stopped, said) = fit_with(&path, "key", params.clone(), first);
        assert_eq!((stopped.history.len(), &said[..]), (first, &[][..]));
        let (resumed, said) = fit_with(&path, "key", params.clone(), 0);
        assert!(said[0].contains(&format!("goes on after epoch {first} of 30")), "{said:?}");
        assert_eq!((resumed.resumed_after, resumed.best_epoch), (first, whole.best_epoch));
        assert_eq!(resumed.head, whole.head, "stopped after {first}");
        assert_eq!(figures(&resumed), figures(&whole));
        fs::remove_file(&path).unwrap();
    }
    // Stopped twice, and without early stopping or a hold-out's figures.
    let params = HeadParams { patience: None, epochs: 9, ..everything() };
    let whole = Small::new().fit(params.clone()).unwrap();
    fit_with(&path, "key", params.clone(), 2);
    fit_with(&path, "key", params.clone(), 5);
    let (resumed, _) = fit_with(&path, "key", params, 0);
    assert_eq!((resumed.head, resumed.resumed_after), (whole.head, 5));
}

#[test]
fn a_checkpoint_of_another_fit_is_removed_and_a_damaged_one_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(Checkpoints::FILE);
    let whole = Small::new().fit(everything()).unwrap();
    fit_with(&path, "key", everything(), 4);
    let bytes = fs::read(&path).unwrap();
    let (fresh, said) = fit_with(&path, "another key", everything(), 0);
    assert_eq!((fresh.resumed_after, &fresh.head, said.len()), (0, &whole.head, 0));
    assert!(!path.exists());

    let checkpoints = Checkpoints::new(&path, "key", &crate::events::ignore);
    assert!(checkpoints.read(&bytes, (5, 3), 30).unwrap().is_some());
    assert!(checkpoints.read(&bytes, (5, 4), 30).unwrap_err().contains("5 features and 4 classes"));
    assert!(checkpoints.read(&bytes, (5, 3), 3).is_err(), "more epochs than the fit has");
    for length in (0..bytes.len()).step_by(3) {
        assert!(checkpoints.read(&bytes[..length], (5, 3), 30).is_err(), "cut to {length} bytes");
    }
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x04;
        // Where a flip is not seen (spaces of the header), it changes nothing.
        if let Ok(Some(state)) = checkpoints.read(&damaged, (5, 3), 30) {
            assert_eq!(Some(state), checkpoints.read(&bytes, (5, 3), 30).unwrap(), "byte {position}");
        }
    }
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let (fresh, said) = fit_with(&path, "key", everything(), 0);
    assert_eq!((fresh.resumed_after, &fresh.head), (0, &whole.head));
    assert!(said[0].contains("checkpoint.safetensors") && said[0].contains("starts from the beginning"), "{said:?}");
}

#[test]
fn a_checkpoint_that_cannot_be_written_stops_no_fit_and_is_not_promised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no such folder").join(Checkpoints::FILE);
    let params = HeadParams { epochs: 3, ..HeadParams::default() };
    let said = Mutex::new(Vec::new());
    let observe = |event: Event<'_>| {
        if let Event::Warned(text) = event {
            said.lock().unwrap().push(text);
        }
    };
    let mut checkpoints = Checkpoints::new(&path, "key", &observe).every(std::time::Duration::ZERO);
    let params = params.check().unwrap();
    let small = Small::new();
    assert_eq!(fit_resumable(&params, &small.examples(), &mut checkpoints, &mut go_on).unwrap().history.len(), 3);
    assert!(said.lock().unwrap()[0].starts_with("no checkpoint could be written"));
    let stop = &mut |_: &EpochRecord| ControlFlow::Break(());
    assert!(matches!(fit_resumable(&params, &small.examples(), &mut checkpoints, stop), Err(HeadError::Io { .. })));
}

#[test]
fn a_step_takes_the_gradient_of_every_row() {
    // Widths that are no whole number of vectors: alone, in slices of its features, and in shares of the rows; 19 classes are
    // four panels, 203 several groups.
    for (rows, width, count) in [(500, 37, 19), (77, 1030, 19), (33, 37, 203), (1100, 37, 19)] {
        check_gradient(rows, width, count);
    }
}

fn check_gradient(count: usize, width: usize, classes: usize) {
    let x = Array2::from_shape_fn((count, width), |(row, feature)| ((row * 37 + feature * 101) % 97) as f32 / 97.0 - 0.4);
    let labels: Vec<usize> = (0..count).map(|row| (row * row) % classes).collect();
    let rows: Vec<usize> = (0..count).collect();
    let target = Target::new(0.1, (0..classes).map(|class| 1.0 + class as f32 / 10.0).collect());
    let task = Task {
        features: crate::head::features::Features::new(x.view(), None),
        labels: &labels,
        target: &target,
        weight_decay: 0.0,
        l2: 0.0,
    };
    let start = Weights::glorot_uniform(width, classes, 1);
    // Gradient in f64.
    let logits = x.mapv(f64::from).dot(&start.kernel.mapv(f64::from));
    let mut errors = logits.clone();
    for ((mut row, &label), logits) in errors.rows_mut().into_iter().zip(&labels).zip(logits.rows()) {
        let sum = logits.mapv(f64::exp).sum();
        let asked = |class| 0.1 / classes as f64 + if class == label { 0.9 } else { 0.0 };
        let weight = (1.0 + label as f64 / 10.0) / count as f64;
        row.iter_mut().enumerate().for_each(|(class, value)| *value = (value.exp() / sum - asked(class)) * weight);
    }
    let kernel = x.mapv(f64::from).t().dot(&errors);
    let bias = errors.sum_axis(ndarray::Axis(0));
    let mut found = Vec::new();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let zero = Weights { kernel: Array2::zeros((width, classes)), bias: Array1::zeros(classes) };
        let (mut layer, mut adam) = (start.pack(), Adam::new(0, zero.pack(), zero.pack()));
        let passed = pool.install(|| adam.pass(&mut layer, &task, &rows, count, &|_| 0.01, Tally::default()));
        let first = Weights::unpack(&layer.like(&adam.kernel.first, &adam.bias.first));
        // The first moment is a tenth of the gradient.
        assert_near(&first.kernel, kernel.iter().map(|gradient| 0.1 * gradient), 1e-6);
        assert_near(&first.bias, bias.iter().map(|gradient| 0.1 * gradient), 1e-6);
        assert!(passed.not_finite.is_none() && passed.first_loss == passed.seen.mean_loss());
        found.push((Weights::unpack(&layer), passed.first_loss.to_bits()));
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{count} x {width}, {classes} classes");
}
