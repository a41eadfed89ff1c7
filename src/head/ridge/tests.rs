use faer::Mat;
use faer::linalg::solvers::Solve as _;

use linfa::ParamGuard as _;

use super::*;
use crate::head::fit::tests::{Small, assert_near, correlated};
use crate::head::{HeadParams, Solver};

fn fit(small: &Small, l2: Option<f64>) -> (crate::head::Head, Ridge) {
    let fitted = small.fit(HeadParams { solver: Solver::Ridge, l2, ..HeadParams::default() }).unwrap();
    (fitted.head, fitted.ridge.unwrap())
}

#[test]
fn leaving_a_row_out_is_a_fit_without_it() {
    // The identity holds where mean and deviation are those of all rows; so the rows come standardized, and only the target's
    // mean moves with the row left out, which the closed form accounts for.
    let small = Small::new();
    let (head, ridge) = fit(&small, Some(0.1));
    let standardization = head.standardization().unwrap();
    let n = small.train.len();
    let z = Array2::from_shape_fn((n, 5), |(row, feature)| {
        f64::from((small.x[(small.train[row], feature)] - standardization.mean[feature]) / standardization.std[feature])
    });
    for out in 0..n {
        // Normal equations of the other rows with an intercept; the penalty keeps the weight it has beside n rows.
        let kept: Vec<usize> = (0..n).filter(|&row| row != out).collect();
        let row = |row: usize| -> Vec<f64> { (0..5).map(|feature| z[(row, feature)]).chain([1.0]).collect() };
        let mut matrix = Mat::<f64>::zeros(6, 6);
        let mut right = Mat::<f64>::zeros(6, 3);
        for &kept in &kept {
            let values = row(kept);
            for i in 0..6 {
                (0..6).for_each(|j| matrix[(i, j)] += values[i] * values[j]);
                right[(i, small.labels[small.train[kept]].unwrap() as usize)] += values[i];
            }
        }
        (0..5).for_each(|i| matrix[(i, i)] += 0.1 * n as f64);
        let solved = matrix.partial_piv_lu().solve(&right);
        let values = row(out);
        let expected: Vec<f64> =
            (0..3).map(|class| ridge.logit_scale * (0..6).map(|i| values[i] * solved[(i, class)]).sum::<f64>()).collect();
        assert_near(ridge.left_out.as_ref().unwrap().row(out), expected, 2e-5);
    }
}

#[test]
fn the_strength_with_the_least_error_left_out_is_taken() {
    let small = Small::new();
    let (_, ridge) = fit(&small, None);
    assert_eq!(ridge.path.len(), path_of_l2(5).len());
    let best =
        ridge.path.iter().min_by(|a, b| a.leave_one_out_error.unwrap().total_cmp(&b.leave_one_out_error.unwrap())).unwrap();
    let params = HeadParams { solver: Solver::Ridge, l2: Some(best.l2), ..HeadParams::default() };
    let again = small.fit(params).unwrap();
    let (found, best) = (again.ridge.as_ref().unwrap().path[0].leave_one_out_error, best.leave_one_out_error);
    assert!((found.unwrap() - best.unwrap()).abs() < 1e-6);
    let (head, _) = fit(&small, None);
    assert_near(again.head.kernel(), head.kernel().iter().map(|&weight| f64::from(weight)), 1e-6);
}

#[test]
fn the_scale_makes_the_probabilities_honest() {
    // Without a hold-out the rows left out decide: no other temperature may give them a lower loss.
    let mut small = correlated();
    small.train.append(&mut small.holdout);
    let (_, ridge) = fit(&small, Some(0.1));
    let labels: Vec<_> = small.train.iter().map(|&row| small.labels[row]).collect();
    let loss = |temperature: f32| {
        let logits = ridge.left_out.as_ref().unwrap().mapv(|logit| logit / temperature);
        crate::evaluate::score(logits.view(), &labels, &small.classes).unwrap().unwrap().loss
    };
    assert!(loss(1.0) <= loss(1.05) && loss(1.0) <= loss(0.95), "{} {} {}", loss(0.95), loss(1.0), loss(1.05));
}

#[test]
fn more_classes_and_features_than_rows_are_no_hindrance() {
    let small = Small {
        x: Array2::from_shape_fn((6, 40), |(row, feature)| ((row * 7 + feature * feature) % 13) as f32),
        labels: (0..6).map(Some).collect(),
        classes: (0..9).map(|class| class.to_string()).collect(),
        train: (0..6).collect(),
        holdout: Vec::new(),
    };
    let fitted = small.fit(HeadParams { solver: Solver::Ridge, l2: Some(1e-3), ..HeadParams::default() }).unwrap();
    assert!((fitted.history[0].accuracy - 1.0).abs() < 1e-12, "{:?}", fitted.history);
}

/// More features than have a leave-one-out error of every row; few of them tell the classes apart.
fn wide(rows: usize) -> Small {
    let features = WIDE + 60;
    let labels: Vec<usize> = (0..rows).map(|row| row * row % 3).collect();
    let noise =
        |row: usize, feature: usize| (((row * 7919 + feature * 104_729 + row * feature * 31) % 1009) as f32 - 504.0) / 300.0;
    Small {
        x: Array2::from_shape_fn((rows, features), |(row, feature)| match feature {
            5 => 4.0,
            _ if feature % 50 == labels[row] => noise(row, feature) + 0.8,
            _ => noise(row, feature),
        }),
        labels: labels.iter().map(|&label| i32::try_from(label).ok()).collect(),
        classes: (0..3).map(|class| class.to_string()).collect(),
        train: (0..rows * 4 / 5).collect(),
        holdout: (rows * 4 / 5..rows).collect(),
    }
}

impl Small {
    fn problem<'a>(&'a self, labels: &'a [usize], standardization: &'a crate::head::Standardization) -> Problem<'a> {
        let features = crate::head::features::Features::new(self.x.view(), Some(standardization));
        Problem { features, labels, train: &self.train, holdout: &self.holdout, refit: &[], classes: self.classes.len() }
    }
}

#[test]
fn of_wide_features_the_equations_are_solved_and_one_space_gives_the_path() {
    let small = wide(1500);
    let labels: Vec<usize> = small.labels.iter().map(|label| label.unwrap() as usize).collect();
    let statistics = Statistics::of(small.x.view(), &labels, &small.train, 3);
    let squares = LeastSquares::new(&statistics, None);
    let std = &squares.standardization().std;
    let cross = statistics.cross(std);
    let l2s = [1e-3, 1e-2, 0.1, 1.0, 10.0];
    let path = squares.path(&l2s).unwrap();
    let points = squares.estimate(&small.problem(&labels, squares.standardization()), &l2s).unwrap();
    for ((l2, near), point) in l2s.into_iter().zip(path).zip(points) {
        let weights = squares.weights(l2).unwrap();
        let kernel = Mat::from_fn(WIDE + 60, 3, |row, class| f64::from(weights.kernel[(row, class)]));
        let residual = statistics.covariance_times(std, &kernel) + faer::Scale(l2) * &kernel - &cross;
        assert!(residual.norm_l2() < 1e-5 * cross.norm_l2(), "{l2}: {}", residual.norm_l2() / cross.norm_l2());
        let error = (&near.kernel - &weights.kernel).mapv(|value| value * value).sum().sqrt();
        assert!(error < 1e-2 * weights.kernel.mapv(|value| value * value).sum().sqrt(), "{l2}: {error}");
        // The mean leverage is the trace of the hat matrix, from every eigenvalue.
        let tiles: crate::head::tiles::Tiles<f64> = statistics.covariance(std, 0.0);
        let whole = Mat::from_fn(WIDE + 60, WIDE + 60, |row, column| tiles.at(row.max(column), row.min(column)));
        let values = whole.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
        let rows = small.train.len() as f64;
        let leverage = (values.iter().map(|value| value / (value + l2)).sum::<f64>() + 1.0) / rows;
        let layer = weights.pack();
        let features = crate::head::features::Features::new(small.x.view(), Some(squares.standardization()));
        let mut answers = vec![0.0; small.train.len() * 3];
        layer.logits_into(&features, &small.train, &mut answers);
        let target = |row: usize, class: usize| f64::from(u8::from(labels[row] == class));
        let errors = answers.chunks_exact(3).zip(&small.train).map(|(answers, &row)| {
            answers.iter().enumerate().map(|(class, &answer)| (f64::from(answer) - target(row, class)).powi(2)).sum::<f64>()
        });
        let expected = errors.sum::<f64>() / rows / (1.0 - leverage).powi(2);
        if leverage < 0.65 {
            let found = point.leave_one_out_error.unwrap();
            assert!((found / expected - 1.0).abs() < 0.25, "{l2}: {found} {expected}");
        } else if leverage > 0.8 {
            assert_eq!(point.leave_one_out_error, None, "{l2}");
        }
    }
}

#[test]
fn deletion_keeps_the_features_that_matter_and_nothing_else() {
    let small = wide(1500);
    let params = HeadParams { solver: Solver::Ridge, budget: Some(120), ..HeadParams::default() };
    let fitted = small.fit(params).unwrap();
    let kept = fitted.ridge.as_ref().unwrap().kept.clone().unwrap();
    assert!(kept.len() == 120 && kept.is_sorted());
    // Of every 50 features three tell the classes apart, feature 5 is constant.
    let useful = kept.iter().filter(|&&feature| feature % 50 < 3).count();
    assert!(useful > 60, "{useful} of {kept:?}");
    for (feature, row) in fitted.head.kernel().rows().into_iter().enumerate() {
        assert_eq!(row.iter().any(|&weight| weight != 0.0), kept.contains(&feature), "{feature}");
    }
    let whole = small.fit(HeadParams { solver: Solver::Ridge, ..HeadParams::default() }).unwrap();
    let (pruned, whole) = (fitted.history[0].val_accuracy.unwrap(), whole.history[0].val_accuracy.unwrap());
    assert!(pruned > whole - 0.1, "{pruned} {whole}");
}

#[test]
fn of_wide_features_the_hold_out_chooses_and_the_refit_is_a_fit_on_all() {
    let small = wide(1500);
    let params = HeadParams { solver: Solver::Ridge, refit: Some(true), ..HeadParams::default() };
    let fitted = small.fit(params.clone()).unwrap();
    let ridge = fitted.ridge.as_ref().unwrap();
    let best = ridge.path.iter().map(|point| point.holdout_accuracy.unwrap()).fold(0.0, f64::max);
    let taken = ridge.path.iter().find(|point| point.l2.total_cmp(&fitted.l2).is_eq()).unwrap();
    assert!((taken.holdout_accuracy.unwrap() - best).abs() < 1e-12 && ridge.left_out.is_none());
    assert!(fitted.history[0].val_accuracy.unwrap() > 0.6, "{:?}", fitted.history);
    let all = Small { train: (0..1500).collect(), holdout: Vec::new(), ..wide(1500) };
    let again = all.fit(HeadParams { l2: Some(fitted.l2), refit: None, ..params }).unwrap();
    let ratio = ridge.logit_scale / again.ridge.as_ref().unwrap().logit_scale;
    let expected = again.head.kernel().mapv(|value| f64::from(value) * ratio);
    let size = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
    let error = fitted.head.kernel().iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
    assert!(error < 5e-3 * size, "{} {error} {size}", fitted.l2);
    assert_eq!(ridge.statistics.count(), 1500);
    assert_ne!(ridge.before_refit.as_ref().unwrap().kernel(), fitted.head.kernel());
}

#[test]
fn of_more_features_than_rows_no_strength_is_taken_that_repeats_the_labels() {
    // Pure noise: the less is believed, the better.
    let few = |features: usize| Small {
        x: Array2::from_shape_fn((60, features), |(row, feature)| {
            ((row * 7919 + feature * 104_729 + row * feature * 31) % 1009) as f32
        }),
        labels: (0..60).map(|row| Some(row * row % 3)).collect(),
        classes: (0..3).map(|class| class.to_string()).collect(),
        train: (0..60).collect(),
        holdout: Vec::new(),
    };
    for features in [200, WIDE + 10] {
        let fitted = few(features).fit(HeadParams { solver: Solver::Ridge, ..HeadParams::default() }).unwrap();
        let path = &fitted.ridge.as_ref().unwrap().path;
        assert!(path[0].leave_one_out_error.is_none(), "{features}: {:?}", path[0]);
        assert!(path.iter().all(|point| point.leave_one_out_error.is_none_or(|error| error > 0.25)), "{features}: {path:?}");
        assert!(fitted.l2 > 0.05, "{features}: {}", fitted.l2);
    }
}

#[test]
fn along_a_path_each_strength_has_its_own_budget() {
    let small = Small { holdout: Vec::new(), ..wide(400) };
    let params = HeadParams { solver: Solver::Ridge, budget: Some(30), ..HeadParams::default() }.check().unwrap();
    let mut found = Vec::new();
    let mut go_on = |_: &_| std::ops::ControlFlow::Continue(());
    crate::head::fit_path(&params, &small.examples(), &[0.1, 10.0], &mut go_on, &mut |fitted| found.push(fitted)).unwrap();
    for fitted in found {
        let used = fitted.head.kernel().rows().into_iter().filter(|row| row.iter().any(|&weight| weight != 0.0)).count();
        assert_eq!(used, 30);
    }
}

#[test]
fn an_estimate_is_the_error_of_its_kernel_or_left_out() {
    const FEATURES: usize = 40;
    // Three features all but say the class: with little L2 next to nothing is left to be wrong about.
    let labels: Vec<usize> = (0..600).map(|row| row * row % 3).collect();
    let noise =
        |row: usize, feature: usize| (((row * 7919 + feature * 104_729 + row * feature * 31) % 1009) as f32 - 504.0) / 300.0;
    let small = Small {
        x: Array2::from_shape_fn((600, FEATURES), |(row, feature)| match feature {
            0..3 => f32::from(u8::from(feature == labels[row])) + 1e-3 * noise(row, feature),
            _ => noise(row, feature),
        }),
        labels: labels.iter().map(|&label| i32::try_from(label).ok()).collect(),
        classes: (0..3).map(|class| class.to_string()).collect(),
        train: (0..600).collect(),
        holdout: Vec::new(),
    };
    let statistics = Statistics::of(small.x.view(), &labels, &small.train, 3);
    let squares = LeastSquares::new(&statistics, None);
    let l2s = path_of_l2(FEATURES);
    let points = squares.estimate(&small.problem(&labels, squares.standardization()), &l2s).unwrap();
    for (weights, point) in squares.path(&l2s).unwrap().iter().zip(&points) {
        let layer = weights.pack();
        let features = crate::head::features::Features::new(small.x.view(), Some(squares.standardization()));
        let mut answers = vec![0.0; 600 * 3];
        layer.logits_into(&features, &small.train, &mut answers);
        let errors = answers.chunks_exact(3).zip(&labels).map(|(answers, &label)| {
            let target = |class: usize| f64::from(u8::from(class == label));
            answers.iter().enumerate().map(|(class, &answer)| (f64::from(answer) - target(class)).powi(2)).sum::<f64>()
        });
        let trained = errors.sum::<f64>() / 600.0;
        if let Some(found) = point.leave_one_out_error {
            // A row's leverage is below 41 of 600.
            let share = found / trained;
            assert!(found > 0.0 && (trained < 1e-9 || (0.99..1.17).contains(&share)), "{}: {found} {trained}", point.l2);
        }
    }
    assert!(points.last().is_some_and(|point| point.leave_one_out_error.is_some()));
}
