// The binary tree of a Brownian path: the counter word of every node and the constants of every
// level. diffast/ops/brownian/reference.py specifies the op.
#pragma once

#include "../../core/normal.h"

namespace diffast {

constexpr int kMaxDepth = 24;
constexpr uint32_t kBrownianNoise = 2u << kPurposeShift;
constexpr uint32_t kMiddleWord = kBrownianNoise + 1u;
constexpr uint32_t kLowEndWord = kBrownianNoise;
constexpr uint32_t kHighEndWord = kBrownianNoise + uint32_t(kStageLimit) - 1u;

// A new value is V = known * keep + z * fresh. `known` is the sum of the values at both ends of the
// interval that the node halves; for the path's two ends it is the middle's value.
struct BrownianLevel {
  double keep, fresh;
};

// The constants by level. Level 0 serves the path's two ends: (exp(-8), sqrt(1 - exp(-16))). Level
// 1 is the middle, whose value is z itself. From level 2 on they are 1 / (2 cosh h) and
// sqrt(tanh h) with h = 16 / 2^level. They are written out because math libraries differ in the
// last bit of tanh.
constexpr BrownianLevel kBrownianLevels[kMaxDepth + 1] = {
    {0.00033546262790251185, 0.9999999437324111}, {0.0, 0.0},
    {0.018309496736843265, 0.999664593620814},    {0.13290111441703983, 0.9818490617583829},
    {0.3240271368319427, 0.8726936208978296},     {0.44340944198503696, 0.6797919955839505},
    {0.4847718145701073, 0.49489257663023106},    {0.49611902073756287, 0.35263720985113894},
    {0.4990250244362676, 0.24983744064393654},    {0.49975595867663836, 0.17674793194272814},
    {0.4999389710519508, 0.12499491413017118},    {0.49998474159897893, 0.0883874485329281},
    {0.4999961853269874, 0.06249984105504861},    {0.49999904632719944, 0.044194145726294154},
    {0.49999976158151566, 0.03124999503294777},   {0.49999994039536116, 0.022097086034020334},
    {0.4999999850988392, 0.015624999844779573},   {0.4999999962747097, 0.011048543428600451},
    {0.4999999990686774, 0.007812499995149362},   {0.49999999976716936, 0.005524271727162423},
    {0.49999999994179234, 0.0039062499998484177}, {0.4999999999854481, 0.002762135863983155},
    {0.499999999996362, 0.0019531249999952631},   {0.4999999999990905, 0.0013810679320041383},
    {0.4999999999997726, 0.000976562499999852},
};

// The level whose intervals have node n, 0 < n < 2^depth, as a middle.
DIFFAST_HD int level_of_node(int64_t node, int depth) {
  while (!(node & 1)) {
    node >>= 1;
    --depth;
  }
  return depth;
}

// A node above the last one counts as the last.
DIFFAST_HD int64_t node_within(int64_t node, int depth) {
  const int64_t last = int64_t(1) << depth;
  return node < last ? node : last;
}

// How many steps lead to a node, a normal each: the middle, an end, then one for each level. None
// lead to a node below 0.
DIFFAST_HD int steps_to(int64_t node, int depth) {
  const int64_t last = int64_t(1) << depth;
  if (node < 0) return 0;
  return node == 0 || node == last ? 2 : node == last / 2 ? 1 : level_of_node(node, depth) + 1;
}

// The counter word of a step. From step 2 on it is that of the middle of the interval of this level
// which contains the node.
DIFFAST_HD uint32_t word_of_step(int64_t node, int depth, int step) {
  if (step > 1) return kBrownianNoise + (1u << (step - 1)) + uint32_t(node >> (depth - step + 1));
  return step == 0 ? kMiddleWord : node > int64_t(1) << (depth - 1) ? kHighEndWord : kLowEndWord;
}

// Whether the value that a step makes is the lower end of the interval of the next step.
DIFFAST_HD bool is_lower_end(int64_t node, int depth, int step) {
  if (step > 1) return (node >> (depth - step) & 1) != 0;
  return (step == 0) == (node > int64_t(1) << (depth - 1));
}

}  // namespace diffast
