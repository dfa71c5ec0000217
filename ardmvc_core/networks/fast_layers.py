"""Two layers that compute what torch's do, faster or more exactly on the CPU; elsewhere they are torch's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad


class _PatchProduct(torch.autograd.Function):
    """3×3 convolution as one matrix product per sample over its patches; the result is channels-last."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else images.dtype
        windows = pad(images, (padding,) * 4).unfold(2, 3, 1).unfold(3, 3, 1)
        batch, channels, height, width = windows.shape[:4]
        patches = torch.empty((batch, channels, 3, 3, height, width), dtype=dtype, device=images.device)
        patches = patches.copy_(windows.permute(0, 1, 4, 5, 2, 3)).view(batch, 9 * channels, -1)
        kernels = weight.flatten(start_dim=1).to(dtype)
        # Filled in place: as a view of a product it could not be rectified in place afterwards.
        shape = (batch, len(kernels), height, width)
        out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
        pixels = out.permute(0, 2, 3, 1).view(batch, height * width, -1)
        start = bias.to(dtype).expand(batch, 1, -1)
        torch.baddbmm(start, patches.transpose(1, 2), kernels.T.expand(batch, -1, -1), out=pixels)
        ctx.save_for_backward(patches, kernels)
        ctx.shapes = (images.shape, weight.shape, padding)
        ctx.dtypes = (images.dtype, weight.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        patches, kernels = ctx.saved_tensors
        image_shape, weight_shape, padding = ctx.shapes
        image_dtype, weight_dtype = ctx.dtypes
        pixels = gradient.permute(0, 2, 3, 1).reshape(len(patches), -1, len(kernels))
        images_gradient = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            columns = torch.bmm(kernels.T.expand(len(patches), -1, -1), pixels.transpose(1, 2)).to(image_dtype)
            images_gradient = _overlap_add(columns, image_shape, gradient.shape[2:], padding)
        if ctx.needs_input_grad[1]:
            products = torch.bmm(patches, pixels).sum(dim=0, dtype=weight_dtype)
            weight_gradient = products.T.reshape(weight_shape)
        if ctx.needs_input_grad[2]:
            bias_gradient = pixels.sum(dim=(0, 1), dtype=weight_dtype)
        return images_gradient, weight_gradient, bias_gradient, None


def _overlap_add(columns: Tensor, image_shape: torch.Size, positions: torch.Size, padding: int) -> Tensor:
    """Adds the 3×3 patches, (B, 9·C, positions), up to the images that they were cut from."""
    batch, channels, height, width = image_shape
    patches = columns.view(batch, channels, 3, 3, *positions)
    images = columns.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    for row in range(3):
        for column in range(3):
            images[:, :, row : row + positions[0], column : column + positions[1]] += patches[:, :, row, column]
    return images[:, :, padding : padding + height, padding : padding + width]


class PatchConv2d(nn.Conv2d):
    """3×3 convolution, stride 1, of an image with few channels; on the CPU as matrix products over its patches.

    With one input channel the CPU's convolution kernels pad the channels, and take several times as long. The result
    lies channel by channel last in memory, which the layers behind it keep and are faster with.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parameter's name in nn.Conv2d
        if input.device.type != "cpu":
            return super().forward(input)
        return _PatchProduct.apply(input, self.weight, self.bias, int(self.padding[0]))


class _NormalisedByBatch(torch.autograd.Function):
    """BatchNorm in training mode for channels-last float32 on the CPU, with statistics that are right to rounding."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _channel_statistics(images)
        ctx.save_for_backward(images, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.batch_norm(images, weight, bias, mean, variance, False, 0.0, eps, False), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        images, weight, mean, inverse_deviation = ctx.saved_tensors
        layout = gradient.contiguous(memory_format=torch.channels_last)
        needed = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_batch_norm_backward(
            layout, images, weight, None, None, mean, inverse_deviation, True, ctx.eps, needed
        )
        images_gradient, weight_gradient, bias_gradient = gradients
        return images_gradient, weight_gradient, bias_gradient, None


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of (B, C, H, W) in channels-last layout.

    torch sums such a channel over B·H·W values one after the other in float32, which loses two digits. Here every
    column of the image is a channel of its own first (B·H values), and their few statistics are then put together.
    """
    batch, channels, height, _ = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(batch * height, -1)
    means, variances = torch.batch_norm_update_stats(rows, None, None, 0.0)
    between, mean = torch.var_mean(means.view(-1, channels), dim=0, correction=0)
    return mean, variances.view(-1, channels).mean(dim=0) + between


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, accurate in the layout that is fast on the CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parameter's name in nn.BatchNorm2d
        count = input.numel() // input.shape[1]  # values per channel; torch refuses a single one
        if not (self.training and input.device.type == "cpu" and input.dtype == torch.float32 and count > 1):
            return super().forward(input)
        if not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        output, mean, variance = _NormalisedByBatch.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return output
