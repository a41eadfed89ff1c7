//! What [`crate::image`] does to pixels, as nodes of a graph: the same bytes.
//!
//! ```text
//! uint8 [N, H, W, 3] ─▶ [N, 3, H, W] ─▶ rows: · [W, side] ─▶ bytes ─▶ columns: [side, H] · ─▶ bytes ─▶ range ─▶ layout
//! ```
//!
//! A resize is two matrix products with the weights of the pipeline's own resizer (a triangle as wide as a pixel of the answer, whole
//! numbers of at most 15 bits, as Pillow and `fast_image_resize` have them), each rounded to bytes. ONNX's `Resize` does neither the
//! rounding in between nor parts of an image, and differs from one runtime to the next; sums of products of small whole numbers do
//! not. They are exact in float32 until an image is shrunk to less than a quarter, and after that a byte in some thousand may differ by
//! one. The weights follow from the size of the image, so they are worked out in the graph. A triangle is narrow beside a photograph,
//! and all weights outside it are zero: columns are made in strips, each from the part of the image that it shows.

use crate::image::{ChannelOrder, ImageSpec, Layout, Resize, View, Window};
use crate::onnx::{Element, InputType, Setting, Writer};

/// Bits of the largest weight.
const WEIGHT_BITS: u32 = 15;
/// Strips of the answer that are made one by one, each from a little more than its share of the image. More would cost small images
/// more than they save large ones.
const STRIPS: u32 = 4;
/// Most binary digits that weights have behind the point.
const MOST_DIGITS: u32 = 21;

/// Tensors of the graph that show what happened to an image.
pub(super) const RESIZED: &str = "tlpipe/resized";
/// As [`RESIZED`]: the numbers that the backbone takes.
pub(super) const TENSOR: &str = "tlpipe/tensor";

/// Arithmetic on numbers of float64 within a graph.
trait Numbers {
    fn op(&mut self, op_type: &str, inputs: &[&str]) -> String;

    fn add(&mut self, a: &str, b: &str) -> String {
        self.op("Add", &[a, b])
    }

    fn sub(&mut self, a: &str, b: &str) -> String {
        self.op("Sub", &[a, b])
    }

    fn mul(&mut self, a: &str, b: &str) -> String {
        self.op("Mul", &[a, b])
    }

    fn div(&mut self, a: &str, b: &str) -> String {
        self.op("Div", &[a, b])
    }

    fn max(&mut self, a: &str, b: &str) -> String {
        self.op("Max", &[a, b])
    }

    fn min(&mut self, a: &str, b: &str) -> String {
        self.op("Min", &[a, b])
    }

    fn floor(&mut self, a: &str) -> String {
        self.op("Floor", &[a])
    }

    /// Half to even, as Python's `round`.
    fn round(&mut self, a: &str) -> String {
        self.op("Round", &[a])
    }

    fn pick(&mut self, condition: &str, a: &str, b: &str) -> String {
        self.op("Where", &[condition, a, b])
    }
}

impl Numbers for Writer {
    fn op(&mut self, op_type: &str, inputs: &[&str]) -> String {
        self.node(op_type, inputs, &[])
    }
}

/// How one axis of the answer comes of one axis of the image; names of numbers of float64.
#[derive(Clone, Debug)]
struct Line {
    /// Pixels of the image.
    length: String,
    /// First pixel of the answer that shows the image; those before it are black.
    first: String,
    /// Pixels of the answer that show it.
    pixels: String,
    /// Where in the image the window begins.
    start: String,
    /// Length of the window.
    window: String,
}

/// Writes the nodes from the input `image` `[N, H, W, 3]` to the backbone's tensor of all views, one view after the other:
/// `[V * N, ...]` in the backbone's layout and type.
pub(super) fn from_bytes(writer: &mut Writer, image: &str, spec: &ImageSpec, takes: InputType) {
    writer.enter("resize");
    let shape = writer.node("Shape", &[image], &[]);
    let [height, width] = [1, 2].map(|axis| {
        let axis = writer.integers(&[axis]);
        let size = writer.node("Gather", &[&shape, &axis], &[Setting::Int("axis", 0)]);
        let none = writer.integers(&[]);
        let size = writer.node("Reshape", &[&size, &none], &[]);
        writer.cast(&size, Element::Float64)
    });
    let windows: Vec<Window> = std::iter::once(Window::Whole).chain(spec.views.parts()).collect();
    let resized: Vec<(Window, String)> = windows
        .into_iter()
        .map(|window| {
            let [rows, columns] = lines(writer, spec, window, &height, &width);
            let narrow = resize_rows(writer, spec.side, image, &columns);
            (window, resize_columns(writer, spec.side, &narrow, &rows))
        })
        .collect();
    let of = |window: Window| resized.iter().find(|(known, _)| *known == window).map_or("", |(_, tensor)| tensor.as_str());
    let views: Vec<String> = spec.views.iter().map(|view| seen(writer, of(view.window), *view, 3)).collect();
    stacked(writer, &views, RESIZED);
    let ranged = range(writer, RESIZED, spec);
    let ranged = match spec.pixels.layout {
        Layout::Nchw => ranged,
        Layout::Nhwc => writer.node("Transpose", &[&ranged], &[Setting::Ints("perm", &[0, 2, 3, 1])]),
    };
    finish(writer, &ranged, takes);
}

/// Writes the nodes from the backbone's own tensor to that of all views; none of them may show a part.
pub(super) fn from_tensor(writer: &mut Writer, image: &str, spec: &ImageSpec, takes: InputType) {
    writer.enter("views");
    let across = match spec.pixels.layout {
        Layout::Nchw => 3,
        Layout::Nhwc => 2,
    };
    let views: Vec<String> = spec.views.iter().map(|view| seen(writer, image, *view, across)).collect();
    let all = match views.as_slice() {
        [only] => only.clone(),
        many => writer.node("Concat", &many.iter().map(String::as_str).collect::<Vec<_>>(), &[Setting::Int("axis", 0)]),
    };
    finish(writer, &all, takes);
}

/// The tensor as the backbone takes it.
fn finish(writer: &mut Writer, tensor: &str, takes: InputType) {
    if takes != InputType::Uint8 {
        writer.named("Identity", &[tensor], TENSOR, &[]);
        return;
    }
    let [none, most] = [0.0, 255.0].map(|limit| writer.floats(&[], &[limit]));
    let rounded = writer.round(tensor);
    let least = writer.max(&rounded, &none);
    let within = writer.min(&least, &most);
    writer.named_cast(&within, Element::Uint8, TENSOR);
}

/// A view of a window that is resized: left and right are exchanged along the axis `across`, or not.
fn seen(writer: &mut Writer, window: &str, view: View, across: i64) -> String {
    if !view.mirrored {
        return window.to_owned();
    }
    let [last, end, axis, back] = [-1, i64::MIN, across, -1].map(|value| writer.integers(&[value]));
    writer.node("Slice", &[window, &last, &end, &axis, &back], &[])
}

fn stacked(writer: &mut Writer, views: &[String], name: &str) {
    match views {
        [only] => writer.named("Identity", &[only], name, &[]),
        many => {
            let many: Vec<&str> = many.iter().map(String::as_str).collect();
            writer.named("Concat", &many, name, &[Setting::Int("axis", 0)]);
        }
    }
}

/// `(byte / divisor - mean) / std` of `[N, 3, side, side]`, channels in the backbone's order.
fn range(writer: &mut Writer, bytes: &str, spec: &ImageSpec) -> String {
    writer.enter("range");
    let format = &spec.pixels;
    let mut tensor = bytes.to_owned();
    if format.order == ChannelOrder::Bgr {
        let order = writer.integers(&[2, 1, 0]);
        tensor = writer.node("Gather", &[&tensor, &order], &[Setting::Int("axis", 1)]);
    }
    // The same three steps in the same order, so that the bits are the same; those that change nothing are left out.
    let divisor = [format.divisor; 3];
    for (op, values, idle) in [("Div", divisor, 1.0), ("Sub", format.mean, 0.0), ("Div", format.std, 1.0)] {
        if values != [idle; 3] {
            let values = writer.floats(&[1, 3, 1, 1], &values);
            tensor = writer.op(op, &[&tensor, &values]);
        }
    }
    tensor
}

/// Numbers of a graph that both axes share.
struct Frame {
    side: String,
    share: String,
    long: String,
}

/// One axis of the image.
struct Along<'a> {
    length: &'a str,
    /// Length of the other axis.
    other: &'a str,
    /// Where the window begins, as a share of the square.
    edge: String,
    is_rows: bool,
}

/// Lines of the rows and of the columns of a window: what [`crate::image::Resizer`] works out, step by step.
fn lines(writer: &mut Writer, spec: &ImageSpec, window: Window, height: &str, width: &str) -> [Line; 2] {
    let [left, top, share] = window.shares();
    let frame = Frame { side: writer.double(f64::from(spec.side)), share: writer.double(share), long: writer.max(height, width) };
    [(height, width, top, true), (width, height, left, false)].map(|(length, other, edge, is_rows)| {
        let along = Along { length, other, edge: writer.double(edge), is_rows };
        match spec.resize {
            Resize::Squash => squashed(writer, &frame, &along),
            Resize::Crop => cropped(writer, &frame, &along),
            Resize::Pad if window == Window::Whole => padded(writer, &frame, &along),
            Resize::Pad => padded_part(writer, &frame, &along),
        }
    })
}

fn squashed(writer: &mut Writer, frame: &Frame, along: &Along<'_>) -> Line {
    Line {
        length: along.length.to_owned(),
        first: writer.double(0.0),
        pixels: frame.side.clone(),
        start: writer.mul(&along.edge, along.length),
        window: writer.mul(along.length, &frame.share),
    }
}

/// Along the short side all is seen, along the long one the middle.
fn cropped(writer: &mut Writer, Frame { side, share, long }: &Frame, along: &Along<'_>) -> Line {
    let [zero, two] = [0.0, 2.0].map(|value| writer.double(value));
    let short = writer.min(along.length, along.other);
    let scaled = writer.mul(side, long);
    let scaled = writer.div(&scaled, &short);
    let scaled = writer.floor(&scaled);
    let rest = writer.sub(&scaled, side);
    let margin = writer.div(&rest, &two);
    let margin = writer.round(&margin);
    let scale = writer.div(long, &scaled);
    let start = writer.mul(&margin, &scale);
    let across = writer.mul(side, &scale);
    let left = writer.sub(long, &start);
    let across = writer.min(&across, &left);
    // Of a square it is the rows that are cut.
    let is_long = if along.is_rows {
        let wide = writer.op("Greater", &[along.other, along.length]);
        writer.op("Not", &[&wide])
    } else {
        writer.op("Greater", &[along.length, along.other])
    };
    let start = writer.pick(&is_long, &start, &zero);
    let whole = writer.pick(&is_long, &across, along.length);
    let inside = writer.mul(&along.edge, &whole);
    Line {
        length: along.length.to_owned(),
        first: zero,
        pixels: side.clone(),
        start: writer.add(&start, &inside),
        window: writer.mul(&whole, share),
    }
}

/// The long side fills the square, the image lies in its middle.
fn padded(writer: &mut Writer, Frame { side, long, .. }: &Frame, along: &Along<'_>) -> Line {
    let [zero, one, two] = [0.0, 1.0, 2.0].map(|value| writer.double(value));
    let scaled = writer.mul(along.length, side);
    let scaled = writer.div(&scaled, long);
    let scaled = writer.round(&scaled);
    let least = writer.max(&scaled, &one);
    let pixels = writer.min(&least, side);
    let rest = writer.sub(side, &pixels);
    let margin = writer.div(&rest, &two);
    let first = writer.round(&margin);
    let length = along.length.to_owned();
    Line { length: length.clone(), first, pixels, start: zero, window: length }
}

/// A part of the square of the long side in whose middle the image lies.
fn padded_part(writer: &mut Writer, Frame { side, share, long: square }: &Frame, along: &Along<'_>) -> Line {
    let (length, edge) = (along.length, along.edge.as_str());
    let [zero, one, two] = [0.0, 1.0, 2.0].map(|value| writer.double(value));
    let seen = writer.mul(share, square);
    let scale = writer.div(side, &seen);
    let rest = writer.sub(square, length);
    let margin = writer.div(&rest, &two);
    let hidden = writer.mul(edge, square);
    let start = writer.sub(&margin, &hidden);
    let end = writer.add(&start, length);
    let [first, last] = [&start, &end].map(|at| {
        let scaled = writer.mul(at, &scale);
        let least = writer.max(&scaled, &zero);
        writer.min(&least, side)
    });
    let before_last = writer.sub(side, &one);
    let from = writer.round(&first);
    let from = writer.min(&from, &before_last);
    let to = writer.round(&last);
    let pixels = writer.sub(&to, &from);
    let pixels = writer.max(&pixels, &one);
    let cut = writer.div(&first, &scale);
    let cut = writer.sub(&cut, &start);
    let cut = writer.max(&cut, &zero);
    let shown = writer.sub(&last, &first);
    let shown = writer.div(&shown, &scale);
    let left = writer.sub(length, &cut);
    let window = writer.min(&shown, &left);
    Line { length: length.to_owned(), first: from, pixels, start: cut, window }
}

/// Weights `[side, length]` of one axis as whole numbers in float32, and what they are to be divided by.
struct Weights {
    values: String,
    unit: String,
    /// Of each pixel of the answer, `[side, 1]` of float64: the middle of its triangle in pixels of the image, and half its width.
    center: String,
    width: String,
}

fn weights(writer: &mut Writer, side: u32, line: &Line) -> Weights {
    let sides = i64::from(side);
    let [zero, half, one] = [0.0, 0.5, 1.0].map(|value| writer.double(value));
    let end = writer.add(&line.start, &line.window);
    let window = writer.sub(&end, &line.start);
    let scale = writer.div(&window, &line.pixels);
    let width = writer.max(&scale, &one);
    let answer: Vec<f64> = (0..side).map(f64::from).collect();
    let answer = writer.doubles(&[sides, 1], &answer);
    let place = writer.sub(&answer, &line.first);
    let middle = writer.add(&place, &half);
    let center = writer.mul(&middle, &scale);
    let center = writer.add(&line.start, &center);
    let center = writer.sub(&center, &half);
    let pixels = writer.op("Range", &[&zero, &line.length, &one]);
    let distance = writer.sub(&pixels, &center);
    let narrower = writer.div(&one, &width);
    let distance = writer.mul(&distance, &narrower);
    let distance = writer.op("Abs", &[&distance]);
    let height = writer.sub(&one, &distance);
    let triangle = writer.max(&height, &zero);
    let axis = writer.integers(&[1]);
    let sum = writer.node("ReduceSum", &[&triangle, &axis], &[Setting::Int("keepdims", 1)]);
    let least = writer.double(f64::MIN_POSITIVE);
    let sum = writer.max(&sum, &least);
    let shares = writer.div(&triangle, &sum);
    // Black where the image does not reach.
    let before = writer.op("Less", &[&place, &zero]);
    let behind = writer.op("Less", &[&place, &line.pixels]);
    let behind = writer.op("Not", &[&behind]);
    let outside = writer.op("Or", &[&before, &behind]);
    let shares = writer.pick(&outside, &zero, &shares);
    // As many binary digits as keep the largest weight in 15 bits.
    let largest = writer.node("ReduceMax", &[&shares], &[Setting::Int("keepdims", 0)]);
    let doubled: Vec<f64> = (1..=MOST_DIGITS).map(|digits| f64::from(1 << digits)).collect();
    let doubled = writer.doubles(&[i64::from(MOST_DIGITS)], &doubled);
    let reach = writer.mul(&largest, &doubled);
    let reach = writer.add(&reach, &half);
    let reach = writer.floor(&reach);
    let limit = writer.double(f64::from(1 << WEIGHT_BITS));
    let fits = writer.op("Less", &[&reach, &limit]);
    let fits = writer.cast(&fits, Element::Int64);
    let digits = writer.node("ReduceSum", &[&fits], &[Setting::Int("keepdims", 0)]);
    let powers: Vec<f64> = (0..=MOST_DIGITS).map(|digits| f64::from(1 << digits)).collect();
    let powers = writer.doubles(&[i64::from(MOST_DIGITS) + 1], &powers);
    let unit = writer.node("Gather", &[&powers, &digits], &[Setting::Int("axis", 0)]);
    let whole = writer.mul(&shares, &unit);
    let whole = writer.add(&whole, &half);
    let whole = writer.floor(&whole);
    Weights { values: writer.cast(&whole, Element::Float32), unit: writer.cast(&unit, Element::Float32), center, width }
}

/// Bytes `[N, H, W, 3]` to `[N, 3, H, side]`.
fn resize_rows(writer: &mut Writer, side: u32, image: &str, line: &Line) -> String {
    let Weights { values, unit, center, width } = weights(writer, side, line);
    let turned = writer.node("Transpose", &[&values], &[Setting::Ints("perm", &[1, 0])]);
    // The first pixel of the image that each of the answer's shows, and the one behind the last; within the image, and at least one.
    let [zero, one] = [0.0, 1.0].map(|value| writer.double(value));
    let last = writer.sub(&line.length, &one);
    let from = writer.sub(&center, &width);
    let from = writer.floor(&from);
    let from = writer.max(&from, &zero);
    let from = writer.min(&from, &last);
    let to = writer.add(&center, &width);
    let to = writer.floor(&to);
    let to = writer.add(&to, &one);
    let least = writer.add(&from, &one);
    let to = writer.max(&to, &least);
    let to = writer.min(&to, &line.length);
    let [from, to] = [from, to].map(|bound| writer.cast(&bound, Element::Int64));
    let [axis_of_columns, axis_of_rows, axis_of_strips, flat] = [2, 0, 1, -1].map(|value| writer.integers(&[value]));
    let bounds = |strip: u32| i64::from(side) * i64::from(strip) / i64::from(STRIPS.min(side));
    let strips: Vec<String> = (0..STRIPS.min(side))
        .map(|strip| {
            let (first, end) = (bounds(strip), bounds(strip + 1));
            let at = |writer: &mut Writer, bound: &str, pixel: i64| {
                let pixel = writer.integers(&[pixel]);
                let found = writer.node("Gather", &[bound, &pixel], &[Setting::Int("axis", 0)]);
                writer.node("Reshape", &[&found, &flat], &[])
            };
            let (start, stop) = (at(writer, &from, first), at(writer, &to, end - 1));
            let part = writer.op("Slice", &[image, &start, &stop, &axis_of_columns]);
            let planes = writer.node("Transpose", &[&part], &[Setting::Ints("perm", &[0, 3, 1, 2])]);
            let planes = writer.cast(&planes, Element::Float32);
            let [first, end] = [first, end].map(|bound| writer.integers(&[bound]));
            let of_strip = writer.op("Slice", &[&turned, &first, &end, &axis_of_strips]);
            let of_strip = writer.op("Slice", &[&of_strip, &start, &stop, &axis_of_rows]);
            writer.op("MatMul", &[&planes, &of_strip])
        })
        .collect();
    let sums = match strips.as_slice() {
        [only] => only.clone(),
        many => writer.node("Concat", &many.iter().map(String::as_str).collect::<Vec<_>>(), &[Setting::Int("axis", 3)]),
    };
    // Who infers shapes does not see through parts of unknown length.
    let shape = writer.integers(&[0, 3, 0, i64::from(side)]);
    let sums = writer.node("Reshape", &[&sums, &shape], &[]);
    to_bytes(writer, &sums, &unit)
}

/// `[N, 3, H, side]` to `[N, 3, side, side]`.
fn resize_columns(writer: &mut Writer, side: u32, narrow: &str, line: &Line) -> String {
    let Weights { values, unit, .. } = weights(writer, side, line);
    let sums = writer.op("MatMul", &[&values, narrow]);
    to_bytes(writer, &sums, &unit)
}

/// Rounded to the nearest byte, of two the larger.
fn to_bytes(writer: &mut Writer, sums: &str, unit: &str) -> String {
    let [half, most] = [0.5, 255.0].map(|value| writer.floats(&[], &[value]));
    let half = writer.mul(unit, &half);
    let raised = writer.add(sums, &half);
    let bytes = writer.div(&raised, unit);
    let bytes = writer.floor(&bytes);
    writer.min(&bytes, &most)
}
