use std::cell::RefCell;
use std::path::Path;

use linfa::ParamGuard as _;
use linfa::traits::Predict as _;
use ndarray::array;

use super::*;
use crate::head::{ClassWeights, HeadParams};

/// A case small enough to be computed elsewhere: 23 rows of 5 features, 3 classes; the last 5 rows are held out.
pub(in crate::head) struct Small {
    pub(in crate::head) x: Array2<f32>,
    pub(in crate::head) labels: Vec<Option<i32>>,
    pub(in crate::head) classes: Vec<String>,
    pub(in crate::head) train: Vec<usize>,
    pub(in crate::head) holdout: Vec<usize>,
}

impl Small {
    pub(in crate::head) fn new() -> Self {
        Self {
            x: Array2::from_shape_fn((23, 5), |(row, feature)| ((row * 7 + feature * 3) % 11) as f32 / 10.0),
            labels: (0..23).map(|row| Some((row * row + row / 4) % 3)).collect(),
            classes: ["a", "b", "c"].map(String::from).to_vec(),
            train: (0..18).collect(),
            holdout: (18..23).collect(),
        }
    }

    pub(in crate::head) fn examples(&self) -> Examples<'_> {
        let Self { x, labels, classes, train, holdout } = self;
        Examples { x: x.view(), labels, train, holdout, refit: holdout, classes }
    }

    pub(in crate::head) fn fit(&self, params: HeadParams) -> Result<Fitted, HeadError> {
        fit(&params.check()?, &self.examples(), &mut |_| ControlFlow::Continue(()))
    }
}

pub(in crate::head) fn assert_near<'a>(
    found: impl IntoIterator<Item = &'a f32>,
    expected: impl IntoIterator<Item = f64>,
    within: f64,
) {
    let (found, expected): (Vec<_>, Vec<_>) = (found.into_iter().collect(), expected.into_iter().collect());
    assert_eq!(found.len(), expected.len());
    for (&found, expected) in found.into_iter().zip(expected) {
        assert!((f64::from(found) - expected).abs() < within, "{found} for {expected}");
    }
}

pub(in crate::head) fn weights() -> Weights {
    let kernel = Array2::from_shape_fn((5, 3), |(feature, class)| (((feature * 3 + class * 5) % 7) as f32 - 3.0) / 10.0);
    Weights { kernel, bias: array![0.1, 0.0, -0.1] }
}

#[test]
fn adam_takes_the_steps_of_keras() {
    // Keras' formulas in numpy, f64: batches of 4 (the last has 2 rows), learning rate 0.05, 3 epochs.
    let params = HeadParams { epochs: 3, batch_size: 4, learning_rate: 0.05, shuffle: false, ..HeadParams::default() };
    let mut told = 0;
    let fitted = fit_from(&params.check().unwrap(), &Small::new().examples(), &weights(), &mut |record| {
        told += 1;
        assert_eq!(record.epoch, told);
        ControlFlow::Continue(())
    });
    let Fitted { head, history, .. } = fitted.unwrap();
    let expected = [
        (1.153_737_744, 5.0 / 18.0, 1.107_188_000, 0.2),
        (1.074_203_716, 7.0 / 18.0, 1.080_009_577, 0.4),
        (1.053_921_547, 0.5, 1.072_743_138, 0.2),
    ];
    assert_eq!((history.len(), told), (3, 3));
    for (record, (loss, accuracy, val_loss, val_accuracy)) in history.iter().zip(expected) {
        assert!((record.loss - loss).abs() < 1e-6 && (record.accuracy - accuracy).abs() < 1e-12, "{record:?}");
        assert!((record.val_loss.unwrap() - val_loss).abs() < 1e-6, "{record:?}");
        assert!((record.val_accuracy.unwrap() - val_accuracy).abs() < 1e-12, "{record:?}");
    }
    let kernel = [
        [-0.444_187_4, 0.253_73, 0.082_055_2],
        [-0.064_750_8, -0.235_059_3, 0.302_878_8],
        [0.327_077, 0.119_181_8, -0.124_904_8],
        [0.205_148_9, -0.551_646_4, 0.013_605_5],
        [-0.125_994_8, -0.021_152_5, 0.017_866_9],
    ];
    assert_near(head.kernel(), kernel.into_iter().flatten(), 1e-5);
    assert_near(head.bias(), [0.103_956, -0.105_524, -0.029_140_9], 1e-5);
    let last = head.probabilities(Small::new().x.slice(ndarray::s![22.., ..])).unwrap();
    assert_near(&last, [0.503_976_6, 0.175_315_8, 0.320_707_6], 1e-5);
}

#[test]
fn adam_lands_where_keras_landed() {
    let Some(assets) = std::env::var_os("TLPIPE_ASSETS") else {
        println!("skipped: TLPIPE_ASSETS is not set, so the reference values of Keras are not at hand");
        return;
    };
    let path = Path::new(&assets).join("../golden/keras_head.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let count = |key: &str| usize::try_from(golden[key].as_u64().unwrap()).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let matrix = |key: &str, columns: usize| {
        let values: Vec<f32> = numbers(&golden[key]).into_iter().map(|value| value as f32).collect();
        Array2::from_shape_vec((values.len() / columns, columns), values).unwrap()
    };
    let (samples, features, classes) = (count("samples"), count("features"), count("classes"));
    let x = matrix("x", features);
    let labels: Vec<_> = numbers(&golden["y"]).into_iter().map(|label| Some(label as i32)).collect();
    let names: Vec<String> = (0..classes).map(|class| class.to_string()).collect();
    let ids: Vec<String> = (0..samples).map(|row| row.to_string()).collect();
    let split = hold_out(&HeadParams::default().rule(HoldOut::Tail), &ids, &labels, &names).unwrap();
    assert_eq!(split.holdout.len(), count("validation_rows"));
    let params = HeadParams { epochs: count("epochs"), batch_size: count("batch_size"), shuffle: false, ..HeadParams::default() };
    let initial = Weights { kernel: matrix("kernel_init", classes), bias: matrix("bias_init", classes).row(0).to_owned() };
    let examples = Examples {
        x: x.view(),
        labels: &labels,
        train: &split.train,
        holdout: &split.holdout,
        refit: &split.holdout,
        classes: &names,
    };
    let Fitted { head, history, .. } =
        fit_from(&params.check().unwrap(), &examples, &initial, &mut |_| ControlFlow::Continue(())).unwrap();

    let curve = |of: fn(&EpochRecord) -> f64| history.iter().map(|record| of(record) as f32).collect::<Vec<_>>();
    let expected = |key: &str| numbers(&golden["history"][key]);
    assert_near(&curve(|record| record.loss), expected("loss"), 1e-4);
    assert_near(&curve(|record| record.accuracy), expected("accuracy"), 1e-4);
    assert_near(&curve(|record| record.val_loss.unwrap()), expected("val_loss"), 1e-4);
    assert_near(&curve(|record| record.val_accuracy.unwrap()), expected("val_accuracy"), 1e-4);
    assert_near(head.kernel(), numbers(&golden["kernel_final"]), 1e-4);
    assert_near(head.bias(), numbers(&golden["bias_final"]), 1e-4);
    let probabilities = head.probabilities(x.slice(ndarray::s![samples - 64.., ..])).unwrap();
    assert_near(&probabilities, numbers(&golden["probabilities_last_64_rows"]), 1e-4);
}

#[test]
fn both_logistic_solvers_find_the_optimum_that_newton_finds() {
    // Newton's method in numpy on standardized rows: mean cross-entropy + 0.1 / 2 * |kernel|², gradient below 1e-16.
    let kernel = [
        [-0.224_048_7, 0.422_578_1, -0.198_529_4],
        [0.435_490_8, 0.049_753_4, -0.485_244_2],
        [0.122_036_2, 0.366_192_6, -0.488_228_8],
        [0.689_107_1, -0.046_331_4, -0.642_775_7],
        [-0.298_906_2, 0.050_256_8, 0.248_649_4],
    ];
    for solver in [Solver::Linfa, Solver::Lbfgs] {
        let tolerance = (solver == Solver::Lbfgs).then_some(1e-6);
        let fitted = Small::new().fit(HeadParams { solver, tolerance, l2: Some(0.1), ..HeadParams::default() }).unwrap();
        let head = &fitted.head;
        assert_near(head.kernel(), kernel.into_iter().flatten(), 1e-4);
        assert_near(head.bias(), [0.166_614_1, -0.121_597, -0.045_017], 1e-4);
        let standardization = head.standardization().unwrap();
        assert_near(&standardization.mean, [0.511_111_11, 0.505_555_56, 0.5, 0.494_444_44, 0.488_888_89], 1e-6);
        assert_near(&standardization.std, [0.328_107_18, 0.317_056_29, 0.3, 0.317_056_29, 0.328_107_18], 1e-6);
        let record = fitted.history.last().unwrap();
        assert!(
            (record.loss - 0.724_190_043_6).abs() < 1e-5 && (record.val_loss.unwrap() - 1.842_371_5).abs() < 1e-4,
            "{record:?}"
        );
        let objective = record.loss + 0.05 * f64::from(head.kernel().mapv(|weight| weight * weight).sum());
        assert!((objective - 0.830_540_235_5).abs() < 1e-6, "{solver}: {objective}");
        assert_eq!((fitted.warnings.len(), fitted.l2), (0, 0.1));
    }
}

/// 400 rows of 60 features that depend on each other, 4 classes.
pub(in crate::head) fn correlated() -> Small {
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let causes = Array2::from_shape_simple_fn((400, 8), &mut draw);
    let mixing = Array2::from_shape_simple_fn((8, 60), &mut draw);
    let x = causes.dot(&mixing) + Array2::from_shape_simple_fn((400, 60), || draw() / 20.0);
    let labels = causes.outer_iter().map(|row| {
        let best = (0..4).max_by(|&a, &b| (row[a] + row[a + 4] / 2.0).total_cmp(&(row[b] + row[b + 4] / 2.0)));
        best.map(|class| class as i32)
    });
    let (train, holdout) = (0..400).partition(|row| row % 5 > 0);
    Small { labels: labels.collect(), x, classes: ["a", "b", "c", "d"].map(String::from).to_vec(), train, holdout }
}

#[test]
fn our_optimum_and_that_of_linfa_are_one() {
    let small = correlated();
    for l2 in [1e-3, 1e-1] {
        let of = |solver| {
            let tolerance = (solver == Solver::Lbfgs).then_some(1e-6);
            let max_iterations = Some(2000);
            let params = HeadParams { solver, tolerance, max_iterations, l2: Some(l2), ..HeadParams::default() };
            let fitted = small.fit(params).unwrap();
            fitted.history.last().unwrap().loss
                + l2 / 2.0 * fitted.head.kernel().iter().map(|&weight| f64::from(weight).powi(2)).sum::<f64>()
        };
        let (ours, theirs) = (of(Solver::Lbfgs), of(Solver::Linfa));
        assert!((ours - theirs).abs() < 1e-6, "l2 {l2}: {ours} {theirs}");
    }
}

#[test]
fn unscaled_features_have_the_same_optimum_where_l2_is_scaled_with_them() {
    // One penalty on all weights: with all features times 1000 and l2 times a million the head gives the same answers.
    let plain = correlated();
    let mut large = correlated();
    large.x.mapv_inplace(|value| value * 1000.0 + 50.0);
    let fit = |small: &Small, l2| {
        let params = HeadParams { solver: Solver::Lbfgs, standardize: Some(false), l2: Some(l2), ..HeadParams::default() };
        small.fit(HeadParams { tolerance: Some(1e-5), ..params }).unwrap().head.probabilities(small.x.view()).unwrap()
    };
    let (plain, large) = (fit(&plain, 1e-3), fit(&large, 1e3));
    assert_near(&large, plain.iter().map(|&value| f64::from(value)), 2e-3);
}

#[test]
fn a_path_gives_what_single_fits_give() {
    let small = correlated();
    for solver in [Solver::Lbfgs, Solver::Ridge, Solver::Adam] {
        let params = HeadParams { solver, ..HeadParams::default() };
        let l2s = [1e-3, 1e-1, 1e-2];
        let (mut path, checked) = (Vec::new(), params.clone().check().unwrap());
        let mut keep = |fitted| path.push(fitted);
        fit_path(&checked, &small.examples(), &l2s, &mut |_| ControlFlow::Continue(()), &mut keep).unwrap();
        assert_eq!(path.iter().map(|fitted| fitted.l2).collect::<Vec<_>>(), [1e-1, 1e-2, 1e-3], "strongest first");
        for fitted in path {
            let alone = small.fit(HeadParams { l2: Some(fitted.l2), ..params.clone() }).unwrap();
            let (one, other) = (fitted.history.last().unwrap(), alone.history.last().unwrap());
            assert!((one.val_loss.unwrap() - other.val_loss.unwrap()).abs() < 1e-3, "{solver}: {one:?} {other:?}");
        }
    }
}

#[test]
fn a_path_that_is_broken_off_hands_out_what_is_done() {
    let small = correlated();
    let params = HeadParams { solver: Solver::Lbfgs, ..HeadParams::default() }.check().unwrap();
    let path = RefCell::new(Vec::new());
    let mut stop = |_: &EpochRecord| {
        if path.borrow().len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut keep = |fitted: Fitted| path.borrow_mut().push(fitted.l2);
    fit_path(&params, &small.examples(), &[1e-4, 1e-3, 1e-2, 1e-1], &mut stop, &mut keep).unwrap();
    assert_eq!(path.into_inner(), [1e-1, 1e-2]);
}

#[test]
fn class_weights_are_rows_that_come_more_often() {
    let small = Small::new();
    let base = HeadParams { solver: Solver::Lbfgs, tolerance: Some(1e-6), standardize: Some(false), ..HeadParams::default() };
    let weights = Some(ClassWeights::Each(vec![1.0, 3.0, 1.0]));
    let weighed = small.fit(HeadParams { class_weights: weights, l2: Some(0.1), ..base.clone() }).unwrap();
    let mut often = Small::new();
    let again: Vec<usize> = often.train.iter().copied().filter(|&row| often.labels[row] == Some(1)).collect();
    often.train.extend(again.iter().chain(&again));
    // Both are means over the rows: more rows, and as much L2 beside each.
    let l2 = Some(0.1 * small.train.len() as f64 / often.train.len() as f64);
    let repeated = often.fit(HeadParams { l2, ..base.clone() }).unwrap();
    assert_near(weighed.head.kernel(), repeated.head.kernel().iter().map(|&weight| f64::from(weight)), 1e-4);
    assert_near(weighed.head.bias(), repeated.head.bias().iter().map(|&weight| f64::from(weight)), 1e-4);
    assert_eq!((weighed.converged, weighed.warnings.len()), (Some(true), 0));

    let plain = small.fit(HeadParams { l2: Some(0.1), ..base.clone() }).unwrap().head;
    let equal = |weight: f64, l2| {
        let class_weights = Some(ClassWeights::Each(vec![weight; 3]));
        small.fit(HeadParams { class_weights, l2: Some(l2), ..base.clone() }).unwrap().head
    };
    assert_eq!(equal(1.0, 0.1), plain, "weights of 1 are none");
    assert_near(equal(2.0, 0.2).kernel(), plain.kernel().iter().map(|&weight| f64::from(weight)), 1e-4);
    let none = Some(ClassWeights::Each(vec![0.0, 0.0, 1.0]));
    let mut two = Small::new();
    two.train.retain(|&row| two.labels[row] != Some(2));
    let error = two.fit(HeadParams { class_weights: none, ..base }).unwrap_err().to_string();
    assert!(error.contains("head.class_weights") && error.contains("above 0"), "{error}");
}

#[test]
fn weights_of_separable_rows_have_no_optimum_without_l2_and_one_with_smoothed_labels() {
    let mut small = Small::new();
    let labels = small.labels.clone();
    small.x = Array2::from_shape_fn((23, 5), |(row, feature)| {
        f32::from(u8::from(labels[row] == i32::try_from(feature).ok())) + (row % 5) as f32 / 100.0
    });
    let fit = |l2, label_smoothing| {
        let fitted = small.fit(HeadParams { solver: Solver::Lbfgs, l2: Some(l2), label_smoothing, ..HeadParams::default() });
        let fitted = fitted.unwrap();
        (fitted.converged, fitted.warnings.join(" "))
    };
    let (converged, said) = fit(0.0, None);
    assert!(converged == Some(false) && said.contains("not at an optimum") && said.contains("Set head.l2 above 0"), "{said}");
    assert_eq!(fit(1e-3, None), (Some(true), String::new()));
    assert_eq!(fit(0.0, Some(0.1)), (Some(true), String::new()));
    // The mean answer to smoothed labels is what they ask for: 1 - 0.1 + 0.1 / 3 for the label.
    let params = HeadParams { solver: Solver::Lbfgs, l2: Some(0.0), label_smoothing: Some(0.1), ..HeadParams::default() };
    let probabilities = small.fit(params).unwrap().head.probabilities(small.x.view()).unwrap();
    let own = small.train.iter().map(|&row| f64::from(probabilities[(row, small.labels[row].unwrap() as usize)]));
    let mean = own.sum::<f64>() / small.train.len() as f64;
    assert!((mean - (0.9 + 0.1 / 3.0)).abs() < 1e-3, "{mean}");
}

#[test]
fn a_class_without_rows_is_survived_by_every_solver() {
    let mut small = Small::new();
    small.train.retain(|&row| small.labels[row] != Some(1));
    for solver in [Solver::Adam, Solver::Linfa, Solver::Lbfgs, Solver::Ridge] {
        let fitted = small.fit(HeadParams { solver, ..HeadParams::default() }).unwrap();
        assert_eq!(fitted.head.kernel().dim(), (5, 3));
        let probabilities = fitted.head.probabilities(small.x.view()).unwrap();
        if matches!(solver, Solver::Linfa | Solver::Lbfgs) {
            assert!(probabilities.column(1).iter().all(|&probability| probability < 1e-12));
        }
    }
}

#[test]
fn a_break_ends_the_training_and_keeps_it() {
    let params = HeadParams::default().check().unwrap();
    let small = Small::new();
    let fitted = fit(&params, &small.examples(), &mut |record| {
        if record.epoch == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(fitted.unwrap().history.len(), 2);
}

#[test]
fn the_seed_decides_everything_and_threads_nothing() {
    // 40 classes and 2048 features: large enough that a step is shared by threads.
    let x = Array2::from_shape_fn((300, 2048), |(row, feature)| ((row * 37 + feature * 101) % 97) as f32 / 97.0);
    let labels: Vec<_> = (0..300).map(|row| Some((row * 7) % 40)).collect();
    let classes: Vec<String> = (0..40).map(|class| class.to_string()).collect();
    let (train, holdout): (Vec<usize>, Vec<usize>) = (0..300).partition(|&row| row % 5 > 0);
    let examples =
        Examples { x: x.view(), labels: &labels, train: &train, holdout: &holdout, refit: &holdout, classes: &classes };
    let with = |threads, seed, standardize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let params = HeadParams { epochs: 2, batch_size: 64, seed, standardize: Some(standardize), ..HeadParams::default() };
        let params = params.check().unwrap();
        let fitted = pool.install(|| fit(&params, &examples, &mut |_| ControlFlow::Continue(()))).unwrap();
        let last = fitted.history.last().unwrap().clone();
        (fitted.head, last.loss.to_bits(), last.val_loss.map(f64::to_bits))
    };
    for standardize in [false, true] {
        let one = with(1, 7, standardize);
        assert_eq!(one, with(2, 7, standardize));
        assert_eq!(one, with(5, 7, standardize));
        assert_ne!(one.0, with(1, 8, standardize).0);
    }
}

#[test]
fn standardization_makes_scale_and_offset_irrelevant() {
    let small = Small::new();
    let moved = Small { x: small.x.mapv(|value| value * 1e6 + 3e6), ..Small::new() };
    let params = HeadParams { standardize: Some(true), ..HeadParams::default() };
    let (one, two) = (small.fit(params.clone()).unwrap(), moved.fit(params).unwrap());
    assert!((one.history[9].loss - two.history[9].loss).abs() < 1e-4);
    let (one, two) = (one.head.logits(small.x.view()).unwrap(), two.head.logits(moved.x.view()).unwrap());
    assert_near(&one, two.iter().map(|&logit| f64::from(logit)), 1e-3);
}

#[test]
fn initial_weights_are_glorot_uniform() {
    let weights = Weights::glorot_uniform(1280, 10, 3);
    let limit = (6.0_f32 / 1290.0).sqrt();
    let (low, high) = weights.kernel.iter().fold((0.0_f32, 0.0_f32), |(low, high), &w| (low.min(w), high.max(w)));
    assert!(low >= -limit && high <= limit && high - low > 1.99 * limit, "{low} to {high}, limit {limit}");
    // A uniform distribution over -a to a has the variance a² / 3.
    let variance = weights.kernel.mapv(|weight| weight * weight).mean().unwrap();
    assert!((variance / (limit * limit / 3.0) - 1.0).abs() < 0.03, "{variance}");
    assert!(weights.bias.iter().all(|&bias| bias == 0.0));
    assert_eq!(weights, Weights::glorot_uniform(1280, 10, 3));
    assert_ne!(weights, Weights::glorot_uniform(1280, 10, 4));
}

#[test]
fn unusable_examples_are_named() {
    let message = |change: &dyn Fn(&mut Small)| {
        let mut small = Small::new();
        change(&mut small);
        small.fit(HeadParams::default()).unwrap_err().to_string()
    };
    let nan = message(&|small| small.x[(20, 3)] = f32::NAN);
    assert!(nan.starts_with("row 20: feature 3 is NaN"), "{nan}");
    let first = message(&|small| (small.x[(9, 1)], small.x[(4, 2)]) = (f32::NAN, f32::NEG_INFINITY));
    assert!(first.starts_with("row 4: feature 2 is -inf"), "{first}");
    assert!(message(&|small| small.labels[3] = Some(3)).starts_with("row 3: label 3 is not one of the 3 classes (0 to 2)"));
    assert!(message(&|small| small.labels[19] = Some(-1)).starts_with("row 19"));
    assert!(message(&|small| small.labels[5] = None).starts_with("row 5: label (none)"));
    assert!(message(&|small| small.labels.fill(Some(2))).starts_with("all 18 training rows are of class \"c\""));
    assert!(message(&|small| small.train.clear()).starts_with("no row is left for training"));
    assert!(message(&|small| small.holdout.push(23)).starts_with("row 23 is listed"));
    assert!(message(&|small| small.labels.truncate(20)).starts_with("labels: found 20, expected 23"));
    assert!(message(&|small| small.x = Array2::zeros((0, 5))).starts_with("labels: found 23, expected 0"));
    assert!(message(&|small| small.x = Array2::zeros((23, 0))).starts_with("features of a row"));
    assert!(message(&|small| small.classes.clear()).contains("not one of the 0 classes"));
    let wrong = Weights { kernel: Array2::zeros((4, 3)), bias: Array1::zeros(3) };
    let params = HeadParams::default().check().unwrap();
    let error = fit_from(&params, &Small::new().examples(), &wrong, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().starts_with("rows of the initial kernel: found 4, expected 5"), "{error}");
}

#[test]
fn a_row_that_is_not_used_may_hold_anything() {
    let mut small = Small::new();
    small.x.row_mut(22).fill(f32::NAN);
    small.labels[22] = None;
    small.holdout.retain(|&row| row != 22);
    assert!(small.fit(HeadParams::default()).is_ok());
}

#[test]
fn divergence_is_stopped_and_explained() {
    for learning_rate in [1e4, 1e38] {
        let error = Small::new().fit(HeadParams { learning_rate, ..HeadParams::default() }).unwrap_err().to_string();
        assert!(error.contains("is too large") && error.contains("lower head.learning_rate"), "{error}");
    }
}

#[test]
fn closed_and_convex_solvers_end_on_hard_data() {
    type Change = fn(&mut Small);
    let hard: [(&str, Change); 6] = [
        ("scaled 1e30", |small| small.x.mapv_inplace(|value| value * 1e30)),
        ("scaled 1e-12", |small| small.x.mapv_inplace(|value| value * 1e-12)),
        ("constant feature", |small| small.x.column_mut(0).fill(5.0)),
        ("duplicate feature", |small| small.x = Array2::from_shape_fn((23, 5), |(row, _)| ((row * 7) % 11) as f32)),
        ("one row a class", |small| small.train = vec![0, 1, 4]),
        ("separable", |small| {
            let labels = small.labels.clone();
            small.x = Array2::from_shape_fn((23, 5), |(row, feature)| {
                f32::from(u8::from(labels[row] == i32::try_from(feature).ok())) + (row % 5) as f32 / 100.0
            });
        }),
    ];
    for (name, change) in hard {
        for l2 in [0.0, 1e-3, 1e6] {
            let mut small = Small::new();
            change(&mut small);
            for solver in [Solver::Linfa, Solver::Lbfgs, Solver::Ridge] {
                let start = std::time::Instant::now();
                match small.fit(HeadParams { solver, l2: Some(l2), ..HeadParams::default() }) {
                    Ok(fitted) => {
                        let loss = fitted.history.last().unwrap().loss;
                        assert!(loss <= 3.0_f64.ln() + 1e-6 || solver == Solver::Ridge, "{solver}, {name}, l2 {l2}: {loss}");
                    }
                    Err(error) => assert!(matches!(error, HeadError::Linfa { .. }), "{solver}, {name}, l2 {l2}: {error}"),
                }
                assert!(start.elapsed().as_secs() < 10, "{solver}, {name}, l2 {l2}");
            }
        }
    }
}

#[test]
fn an_answer_of_zeros_is_not_believed() {
    let mut small = Small::new();
    small.x.fill(0.5);
    let error = small.fit(HeadParams { solver: Solver::Linfa, ..HeadParams::default() }).unwrap_err();
    assert!(matches!(error, HeadError::Linfa { .. }), "{error}");
    assert!(error.to_string().contains("all zero"), "{error}");
}

#[test]
fn a_head_refuses_features_it_cannot_answer() {
    let head = Small::new().fit(HeadParams::default()).unwrap().head;
    let error = head.logits(Array2::zeros((2, 4)).view()).unwrap_err();
    assert!(matches!(error, HeadError::Size { found: 4, expected: 5, .. }), "{error}");
    let mut x = Array2::zeros((600, 5));
    x[(500, 2)] = f32::INFINITY;
    x[(300, 0)] = f32::NAN;
    assert!(head.probabilities(x.view()).unwrap_err().to_string().starts_with("row 300:"));
    assert_eq!(head.logits(Array2::zeros((0, 5)).view()).unwrap().dim(), (0, 3));
}

#[test]
fn linfa_traits_reach_every_solver() {
    let small = Small::new();
    let targets: Array1<usize> = small.labels.iter().flatten().map(|&label| label as usize).collect();
    let data = DatasetBase::new(small.x.view(), targets);
    for solver in [Solver::Adam, Solver::Linfa, Solver::Lbfgs, Solver::Ridge] {
        let params = HeadParams { solver, ..HeadParams::default() };
        let head = params.fit(&data).unwrap();
        assert_eq!(head.kernel(), small.fit(params).unwrap().head.kernel());
        let predicted = head.predict(&small.x);
        assert_eq!(predicted.len(), 23);
    }
    let refused = HeadParams { epochs: 0, ..HeadParams::default() }.fit(&data).unwrap_err();
    assert!(matches!(refused, HeadError::Parameter { name: "epochs", .. }));
    let sparse = DatasetBase::new(small.x.view(), Array1::from_elem(23, 4_000_000_000_usize));
    assert!(matches!(HeadParams::default().fit(&sparse).unwrap_err(), HeadError::Label { row: 0, .. }));
}
