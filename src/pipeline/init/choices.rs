//! From what was found to settings, each with its reason.

use serde::Serialize;
use toml::Value;

use super::Network;
use super::survey::{ClassBalance, Sizes, Survey};
use crate::image::Resize;
use crate::numbers::{self, count};

/// Images whose longer side is at most so many times the shorter one lose nothing worth a word when they are made square.
const NEARLY_SQUARE: f64 = 1.1;
/// Above this, the middle square is less than half of an image.
const LONG: f64 = 2.0;
/// Sides of inputs are multiples of this: networks halve their maps five times.
const STEP: u32 = 32;
/// Least side at which the last maps of a network that was trained on large images are alive.
const LEAST_SIDE: u32 = 96;
/// Enlarged more than this many times, small images gain no accuracy (CIFAR-10: 0.77 at 96 px, 0.84 at 160, 0.84 at 224).
const ENLARGED: u32 = 5;
/// Rows to train on below which the hold-out is too small to choose the strength of L2 for wide features. Of 200 rows of CIFAR-10 (96 px)
/// least squares on several depths still made 0.698, on the last one 0.667; of 3,000 it was 0.830 and 0.762.
const FEW_ROWS: usize = 200;
/// Rows to train on below which `lbfgs` wants more L2 than where the key is left out (CIFAR-10, 3,310 rows out of balance, 96 px: 0.1
/// gave 0.732 on the last layer and 0.768 on several, 0.01 gave 0.706 and 0.764).
const FEW_FOR_L2: usize = 10_000;
/// Bytes of features above which one depth of the network is proposed instead of many.
const MOST_BYTES: usize = 8 << 30;
/// Share that is held out.
const HELD_OUT: f64 = 0.2;

/// One setting, and why it is so.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// Dotted key, such as `backbone.input_size`.
    pub key: &'static str,
    /// Its value.
    pub value: Value,
    /// Why.
    pub reason: String,
    /// Whether it is set; otherwise it is only offered, in a comment.
    pub set: bool,
}

fn set(key: &'static str, value: impl Into<Value>, reason: impl Into<String>) -> Choice {
    Choice { key, value: value.into(), reason: reason.into(), set: true }
}

fn offered(key: &'static str, value: impl Into<Value>, reason: impl Into<String>) -> Choice {
    Choice { set: false, ..set(key, value, reason) }
}

/// Settings of `[backbone]` and `[head]` for these images and this network.
pub(super) fn choose(survey: &Survey, network: &Network) -> Vec<Choice> {
    let (depth, head) = head(survey, network);
    let mut choices = vec![
        set("backbone.model", network.name.as_str(), network.title.as_str()),
        input_size(&survey.sizes, network),
        resize(&survey.sizes),
        depth,
        offered(
            "backbone.views",
            vec![Value::from("identity"), Value::from("hflip")],
            "Each image mirrored, too: twice the time, and one point more on CIFAR-10. Not where left and right matter, as in text.",
        ),
    ];
    choices.extend(head);
    choices.extend(hold_out(survey));
    choices
}

/// What it runs on, which the images do not decide.
pub(super) fn device() -> Choice {
    offered("runtime.device", "auto", "On an NVIDIA card where one works, else on the processor; left out, on the processor.")
}

fn input_size(sizes: &Sizes, network: &Network) -> Choice {
    const KEY: &str = "backbone.input_size";
    let (native, shorter) = (network.side, sizes.shorter_median);
    let trained = if network.side_known { "the network was trained at" } else { "networks are usually trained at" };
    if let Some(fixed) = network.fixed_side {
        return set(KEY, fixed, format!("The network takes images of {fixed} pixels, and no others."));
    }
    let enlarged = shorter.saturating_mul(ENLARGED).next_multiple_of(STEP).clamp(LEAST_SIDE.min(native), native);
    if shorter >= native {
        let less = (native * 3 / 4) / STEP * STEP;
        let share = (f64::from(native) / f64::from(less.max(1))).powi(2);
        let quicker =
            if less >= LEAST_SIDE { format!(" {less} would be about {share:.1} times as quick.") } else { String::new() };
        set(
            KEY,
            native,
            format!(
                "The side that {trained}; the images are as large or larger (shorter side {shorter} pixels at the median).{quicker}"
            ),
        )
    } else if enlarged == native {
        set(
            KEY,
            native,
            format!(
                "The side that {trained}; the images are smaller (shorter side {shorter} pixels at the median) and are enlarged."
            ),
        )
    } else {
        set(
            KEY,
            enlarged,
            format!(
                "The images are small, {shorter} pixels at the median: they are enlarged {:.1} times, where accuracy stops to grow (CIFAR-10, of 32 \
                 pixels: 0.77 at 96, 0.84 at 160, 0.84 at 224). At {shorter} pixels themselves little would be left of them in the last layers.",
                f64::from(enlarged) / f64::from(shorter.max(1))
            ),
        )
    }
}

fn resize(sizes: &Sizes) -> Choice {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let (how, reason) = if sizes.elongation_p90 <= NEARLY_SQUARE {
        (Resize::Squash, "The images are square, or nearly so: nothing is lost by making them square.".to_owned())
    } else if sizes.shape_spread <= NEARLY_SQUARE {
        let reason = format!(
            "All images have about the same shape ({} x {}), so squashing changes all of them alike; \"crop\" would cut off {} of each.",
            sizes.median[0],
            sizes.median[1],
            percent(sizes.outside_square)
        );
        (Resize::Squash, reason)
    } else if sizes.elongation_p90 <= LONG {
        let reason = format!(
            "The images have several shapes. Their middle square keeps shapes as the network knows them, and costs {} of their area on average; \
             where what counts is at the edges, take \"pad\".",
            percent(sizes.outside_square)
        );
        (Resize::Crop, reason)
    } else {
        let reason = format!(
            "One image in ten is more than {:.1} times as long as wide: \"crop\" would cut off most of it, and \"squash\" bend shapes. \
             Black is put around instead.",
            sizes.elongation_p90
        );
        (Resize::Pad, reason)
    };
    set("backbone.resize", how.to_string(), reason)
}

/// What is read of the network, and the head on it: they are chosen together.
fn head(survey: &Survey, network: &Network) -> (Choice, Vec<Choice>) {
    let (rows, images) = (survey.trained(), survey.contents.images());
    let bytes = images.saturating_mul(network.multi.unwrap_or(0)).saturating_mul(size_of::<f32>());
    let wide = network.multi.filter(|_| rows >= FEW_ROWS && bytes <= MOST_BYTES);
    let reason = match (network.multi, wide) {
        (_, Some(width)) => format!(
            "Several depths of the network in one pass, {} values an image ({}): worth far more than the last one alone (CIFAR-10 at 96 px: \
             0.89 instead of 0.78), for some 5 % more time. \"pooled\" is that one alone.",
            count(width),
            numbers::bytes(bytes as u64)
        ),
        (None, None) => {
            "The tensor before the classifier; this network has no maps before it that could be read besides.".to_owned()
        }
        (Some(_), None) if rows < FEW_ROWS => format!(
            "The tensor before the classifier. \"multi\", several depths, is worth most with many images: {} to train on are few to choose \
             its L2 by.",
            count(rows)
        ),
        (Some(width), None) => format!(
            "The tensor before the classifier. \"multi\", several depths, gives better heads, but {} images of {} values take {:.0} GB.",
            count(images),
            count(width),
            bytes as f64 / 1e9
        ),
    };
    let layers = set("backbone.layers", if wide.is_some() { "multi" } else { "pooled" }, reason);
    let solver = |solver: &str, reason: &str| set("head.solver", solver, reason);
    let refit = |reason: &str| {
        set("head.refit", true, format!("Once {reason}, the head is fitted again on all of train, the hold-out included."))
    };
    let head = if survey.balance.imbalanced {
        let why = "Logistic regression at its optimum; it takes weights for classes, as \"ridge\" does not.";
        vec![solver("lbfgs", why), l2(rows), class_weights(&survey.balance)]
    } else if wide.is_some() {
        let why = "Least squares in closed form: seconds on features as wide as these. Its L2 is chosen on the hold-out. \"lbfgs\" and \"adam\" \
                   suit \"pooled\".";
        vec![solver("ridge", why), refit("L2 is chosen")]
    } else if rows < FEW_ROWS {
        let why = "Least squares in closed form. Its L2 is chosen by leaving each row out in turn, which few images allow.";
        vec![solver("ridge", why), refit("all is chosen")]
    } else {
        let why = "Logistic regression at its optimum. \"adam\" is the recipe of TensorFlow's guide, \"ridge\" the closed form.";
        vec![solver("lbfgs", why), l2(rows)]
    };
    (layers, head)
}

/// The strength of L2 for `lbfgs`.
fn l2(rows: usize) -> Choice {
    const KEY: &str = "head.l2";
    let sweep = "`tlpipe fit-head --sweep` finds the best one on the hold-out.";
    if rows < FEW_FOR_L2 {
        set(
            KEY,
            0.1,
            format!("{} rows for so many features want more L2 than the 0.01 of the key left out; {sweep}", count(rows)),
        )
    } else {
        offered(KEY, 0.01, format!("Strength of L2; {sweep}"))
    }
}

fn class_weights(balance: &ClassBalance) -> Choice {
    let ((largest, most), (smallest, least)) = (&balance.largest, &balance.smallest);
    set(
        "head.class_weights",
        "balanced",
        format!(
            "{largest} has {} images to train on, {smallest} {}: {:.0} times as many. Weighted, each class counts the same; look at the balanced \
             accuracy and the macro F1 of the report. \"none\" weighs each image the same.",
            count(*most),
            count(*least),
            balance.ratio
        ),
    )
}

fn hold_out(survey: &Survey) -> Vec<Choice> {
    const SPLIT: &str = "head.split";
    let contents = &survey.contents;
    let last_word = match contents.split("test") {
        Some(test) => format!(" The {} of test are scored at the end, and choose nothing.", images(test.rows)),
        None => " There is no split `test`, so this is the only score: what it chose, it flatters.".to_owned(),
    };
    if let Some(validation) = contents.split("validation") {
        let reason = format!("The source brings its own hold-out, {}.{last_word}", images(validation.rows));
        return vec![set(SPLIT, "source", reason)];
    }
    let rows = survey.trained();
    let held = (rows as f64 * HELD_OUT).ceil();
    let points = 196.0 * (0.09 / held.max(1.0)).sqrt();
    let share = format!(
        "Held out: {} of {}, enough to know an accuracy of 90 % to about {points:.1} points either way.{last_word}",
        count(held as usize),
        images(rows)
    );
    let (split, why) = if contents.sorted_by_class {
        let why = format!(
            "The same share of each class. {} are read class by class: the last fifth (\"tail\") would hold the last classes only.",
            capital(&contents.kind)
        );
        ("stratified", why)
    } else if survey.class_by_class {
        let why = "The same share of each class: these rows stand class by class, so the last fifth (\"tail\") would hold the last classes only.";
        ("stratified", why.to_owned())
    } else if survey.balance.imbalanced || !survey.balance.few.is_empty() {
        let why = "The same share of each class, so that the small ones are on both sides.";
        ("stratified", why.to_owned())
    } else {
        let why = "The last rows, as Keras does it: they do not stand class by class, and a hold-out that is a piece of the file stays the same. \
                   \"stratified\" takes the same share of each class.";
        ("tail", why.to_owned())
    };
    vec![
        set("head.validation_split", HELD_OUT, share),
        set(
            SPLIT,
            split,
            format!("{why} Where several images show one thing (a patient, a film), \"grouped\" keeps them together."),
        ),
    ]
}

fn images(number: usize) -> String {
    if number == 1 { "1 image".into() } else { format!("{} images", count(number)) }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
