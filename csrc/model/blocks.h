/* The blocks that the UNet and the VAE are made of. */
#ifndef SID_MODEL_BLOCKS_H
#define SID_MODEL_BLOCKS_H

#include "model/layers.h"
#include "model/tap.h"

/* norm, SiLU, 3x3 convolution, + time embedding, norm, SiLU, 3x3 convolution, + shortcut. */
typedef struct {
    size_t in, skip, out; /* the input's channels, those of a decoder's skip connection (or 0), the output's */
    size_t groups;
    float eps;
    sid_norm norm1, norm2;
    sid_conv *conv1, *conv2;
    sid_linear *shortcut, *skip_shortcut; /* the 1x1 convolution's columns of the input and of the skip connection;
                                             NULL: the input itself is added */
} sid_resnet;

/* The numbers of the resnet are set. */
int sid_resnet_open(sid_builder *builder, sid_resnet *resnet, const char *prefix);
void sid_resnet_close(sid_backend *backend, sid_resnet *resnet);
/* dst (n, h, w, out), x (n, h, w, in), skip NULL or (n, h, w, skip), time NULL or float32
 * (1, 1, 1, out): added to every pixel. dst may be x where in == out. */
int sid_resnet_run(sid_exec *exec, const sid_resnet *resnet, sid_tensor *dst, sid_tensor *x, const sid_tensor *skip,
                   const sid_tensor *time);

/* out(attention(query(norm(x)), keys(...))); keys: keys and values, stacked. */
typedef struct {
    sid_norm norm;
    sid_linear *query, *keys, *out;
} sid_attention_part;

/* norm, projection, [norm, self-attention, norm, cross-attention, norm, gated feed-forward] each + its input,
 * projection, + input. */
typedef struct {
    size_t channels, heads, groups;
    size_t context_size;
    int linear_projection;
    int layer; /* decoder layer number for the tap; -1: none */
    sid_norm norm, norm3;
    sid_linear *project_in, *project_out;
    sid_attention_part attention1, attention2; /* self-attention; cross-attention, whose keys map the context */
    sid_linear *hidden, *gate, *forward;       /* forward(hidden(x) * gelu(gate(x))) */
} sid_transformer;

/* The numbers of the transformer are set. context_tokens: as many as the usual context has. */
int sid_transformer_open(sid_builder *builder, sid_transformer *transformer, const char *prefix, size_t context_tokens);
void sid_transformer_close(sid_backend *backend, sid_transformer *transformer);
/* x (n, h, w, channels), in place. context_keys: (1 or n, 1, tokens, 2 * channels). */
int sid_transformer_run(sid_exec *exec, const sid_transformer *transformer, sid_tensor *x,
                        const sid_tensor *context_keys, const sid_tap *tap);

#endif
