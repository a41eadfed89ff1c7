//! A small MobileNetV2 that can be trained: layers, forward pass, backward pass, one image at a time.
//!
//! Maps are row-major `[channels, side * side]`. Sums run in a fixed order and without fused multiply-add, so that the
//! same seed gives the same weights on every platform.

use std::ops::Range;

use super::matrix;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 3x3 over all channels.
    Dense,
    /// 3x3 within each channel.
    Depthwise,
    /// 1x1 over all channels.
    Pointwise,
}

/// A convolution with bias; every 3x3 is padded by one.
pub struct Layer {
    pub kind: Kind,
    pub inputs: usize,
    pub outputs: usize,
    pub stride: usize,
    /// ReLU6 after it; else linear.
    pub relu6: bool,
    /// The map that is added to the output: 0 is the image, `i + 1` the output of layer `i`.
    pub residual: Option<usize>,
    /// Side of the input map.
    side: usize,
    pub weights: Range<usize>,
    pub bias: Range<usize>,
}

impl Layer {
    /// Values that each output sums over.
    pub fn fan_in(&self) -> usize {
        self.weights.len() / self.outputs
    }

    fn output_side(&self) -> usize {
        self.side / self.stride
    }
}

/// What follows the layers is a global average, and a linear classifier over its `features`.
pub struct Network {
    pub layers: Vec<Layer>,
    pub features: usize,
    pub classes: usize,
    pub weights: Range<usize>,
    pub bias: Range<usize>,
    /// Length of the parameter vector that holds everything.
    pub parameters: usize,
    /// Side of the image.
    pub side: usize,
}

/// An inverted residual block: expand by `expansion`, depthwise with `stride`, project to `outputs`.
pub struct Block {
    pub expansion: usize,
    pub outputs: usize,
    pub stride: usize,
}

/// The maps of one image.
pub struct Trace {
    maps: Vec<Vec<f32>>,
    columns: Vec<f32>,
    pub features: Vec<f32>,
    pub logits: Vec<f32>,
}

impl Network {
    pub fn new(side: usize, stem: usize, blocks: &[Block], features: usize, classes: usize) -> Self {
        let mut network = Self { layers: Vec::new(), features, classes, weights: 0..0, bias: 0..0, parameters: 0, side };
        network.push(Kind::Dense, stem, 2, true);
        let mut channels = stem;
        for block in blocks {
            let start = network.layers.len();
            let wide = channels * block.expansion;
            if block.expansion > 1 {
                network.push(Kind::Pointwise, wide, 1, true);
            }
            network.push(Kind::Depthwise, wide, block.stride, true);
            network.push(Kind::Pointwise, block.outputs, 1, false);
            if block.stride == 1
                && block.outputs == channels
                && let Some(last) = network.layers.last_mut()
            {
                last.residual = Some(start);
            }
            channels = block.outputs;
        }
        network.push(Kind::Pointwise, features, 1, true);
        network.top()
    }

    /// A linear classifier over given features: a network without layers.
    pub fn classifier(features: usize, classes: usize) -> Self {
        Self { layers: Vec::new(), features, classes, weights: 0..0, bias: 0..0, parameters: 0, side: 1 }.top()
    }

    fn top(mut self) -> Self {
        self.weights = self.reserve(self.features * self.classes);
        self.bias = self.reserve(self.classes);
        self
    }

    fn push(&mut self, kind: Kind, outputs: usize, stride: usize, relu6: bool) {
        let (inputs, side) = self.layers.last().map_or((3, self.side), |last| (last.outputs, last.output_side()));
        let fan_in = match kind {
            Kind::Dense => inputs * 9,
            Kind::Depthwise => 9,
            Kind::Pointwise => inputs,
        };
        let (weights, bias) = (self.reserve(fan_in * outputs), self.reserve(outputs));
        self.layers.push(Layer { kind, inputs, outputs, stride, relu6, residual: None, side, weights, bias });
    }

    fn reserve(&mut self, count: usize) -> Range<usize> {
        let start = self.parameters;
        self.parameters += count;
        start..self.parameters
    }

    /// Runs one image, `[3, side * side]`.
    pub fn forward(&self, parameters: &[f32], image: Vec<f32>) -> Trace {
        let mut trace = Trace { maps: vec![image], columns: Vec::new(), features: Vec::new(), logits: Vec::new() };
        for (index, layer) in self.layers.iter().enumerate() {
            let (weights, bias) = (&parameters[layer.weights.clone()], &parameters[layer.bias.clone()]);
            let input = &trace.maps[index];
            let area = layer.output_side() * layer.output_side();
            let mut output: Vec<f32> = bias.iter().flat_map(|&value| std::iter::repeat_n(value, area)).collect();
            match layer.kind {
                Kind::Dense => {
                    trace.columns = columns(input, layer);
                    matrix::multiply(weights, (layer.fan_in(), 1), &trace.columns, &mut output, layer.fan_in(), area);
                }
                Kind::Pointwise => matrix::multiply(weights, (layer.inputs, 1), input, &mut output, layer.inputs, area),
                Kind::Depthwise => depthwise(layer, |run| {
                    let weight = weights[run.channel * 9 + run.tap];
                    let row = &mut output[run.channel * area + run.to..][..run.count];
                    add_scaled(row, 1, weight, &input[run.from..], layer.stride);
                }),
            }
            if layer.relu6 {
                output.iter_mut().for_each(|value| *value = value.clamp(0.0, 6.0));
            }
            if let Some(source) = layer.residual {
                output.iter_mut().zip(&trace.maps[source]).for_each(|(value, added)| *value += added);
            }
            trace.maps.push(output);
        }
        let last = &trace.maps[self.layers.len()];
        let area = last.len() / self.features;
        trace.features = last.chunks_exact(area).map(|map| map.iter().sum::<f32>() / area as f32).collect();
        let (weights, bias) = (&parameters[self.weights.clone()], &parameters[self.bias.clone()]);
        trace.logits =
            weights.chunks_exact(self.features).zip(bias).map(|(row, bias)| bias + dot(row, &trace.features)).collect();
        trace
    }

    /// Adds the gradient of one image to `gradient`, given the gradient at its logits.
    pub fn backward(&self, parameters: &[f32], trace: &Trace, at_logits: &[f32], gradient: &mut [f32]) {
        let mut at_features = vec![0.0; self.features];
        for (class, &slope) in at_logits.iter().enumerate() {
            gradient[self.bias.start + class] += slope;
            let row = self.weights.start + class * self.features;
            for feature in 0..self.features {
                gradient[row + feature] += slope * trace.features[feature];
                at_features[feature] += slope * parameters[row + feature];
            }
        }
        let mut slopes: Vec<Vec<f32>> = trace.maps.iter().map(|map| vec![0.0; map.len()]).collect();
        let area = trace.maps[self.layers.len()].len() / self.features;
        for (map, slope) in slopes[self.layers.len()].chunks_exact_mut(area).zip(&at_features) {
            map.fill(slope / area as f32);
        }
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let mut above = std::mem::take(&mut slopes[index + 1]);
            if let Some(source) = layer.residual {
                slopes[source].iter_mut().zip(&above).for_each(|(slope, added)| *slope += added);
            }
            if layer.relu6 {
                for (slope, &value) in above.iter_mut().zip(&trace.maps[index + 1]) {
                    if value <= 0.0 || value >= 6.0 {
                        *slope = 0.0;
                    }
                }
            }
            let area = above.len() / layer.outputs;
            for (channel, map) in above.chunks_exact(area).enumerate() {
                gradient[layer.bias.start + channel] += map.iter().sum::<f32>();
            }
            let weights = &parameters[layer.weights.clone()];
            let at_weights = &mut gradient[layer.weights.clone()];
            let (input, below) = (&trace.maps[index], &mut slopes[index]);
            match layer.kind {
                // The stem is the first layer: nothing lies below it.
                Kind::Dense => matrix::outer(&above, &trace.columns, at_weights, layer.fan_in(), area),
                Kind::Pointwise => {
                    matrix::outer(&above, input, at_weights, layer.inputs, area);
                    matrix::multiply(weights, (1, layer.inputs), &above, below, layer.outputs, area);
                }
                Kind::Depthwise => depthwise(layer, |run| {
                    let at = run.channel * 9 + run.tap;
                    let row = &above[run.channel * area + run.to..][..run.count];
                    at_weights[at] +=
                        row.iter().zip(input[run.from..].iter().step_by(layer.stride)).map(|(a, b)| a * b).sum::<f32>();
                    add_scaled(&mut below[run.from..], layer.stride, weights[at], row, 1);
                }),
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `to += factor * from`, each taken in steps.
fn add_scaled(to: &mut [f32], to_step: usize, factor: f32, from: &[f32], from_step: usize) {
    if to_step == 1 && from_step == 1 {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
    } else {
        to.iter_mut().step_by(to_step).zip(from.iter().step_by(from_step)).for_each(|(to, from)| *to += factor * from);
    }
}

/// A run of multiplications within one row of a 3x3 convolution: output `to + i` reads input `from + i * stride`.
struct Run {
    channel: usize,
    tap: usize,
    to: usize,
    from: usize,
    count: usize,
}

/// Visits every multiplication of a padded 3x3 convolution within channels; `to` counts in one output map, `from` in all
/// input maps.
fn depthwise(layer: &Layer, mut visit: impl FnMut(Run)) {
    let (side, output, stride) = (layer.side, layer.output_side(), layer.stride);
    for channel in 0..layer.inputs {
        for tap in 0..9 {
            let (down, across) = (tap / 3, tap % 3);
            let first = usize::from(across == 0);
            let end = output.min((side - across) / stride + 1);
            for row in usize::from(down == 0)..output.min((side - down) / stride + 1) {
                let (y, x) = (row * stride + down - 1, first * stride + across - 1);
                let from = (channel * side + y) * side + x;
                visit(Run { channel, tap, to: row * output + first, from, count: end - first });
            }
        }
    }
}

/// The patches of a 3x3 convolution as rows: `[inputs * 9, output area]`.
fn columns(input: &[f32], layer: &Layer) -> Vec<f32> {
    let output = layer.output_side();
    let mut columns = vec![0.0; layer.inputs * 9 * output * output];
    depthwise(layer, |run| {
        let row = &mut columns[(run.channel * 9 + run.tap) * output * output + run.to..][..run.count];
        row.iter_mut().zip(input[run.from..].iter().step_by(layer.stride)).for_each(|(column, value)| *column = *value);
    });
    columns
}
