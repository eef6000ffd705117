"""Two workers: one takes orders and asks the other for the price. The tests beside it show how to test such a team."""

from __future__ import annotations

import hivewire as hw

PRICES = {"apple": 3, "pear": 4}

shop = hw.Worker("shop")
till = hw.Worker("till")


@shop.on("order", retry=hw.Retry(max_attempts=3, first_s=0.01, most_s=0.05))
async def order(message: hw.Message, ctx: hw.Context) -> None:
    """Reminds the customer an hour later."""
    if message.content["item"] not in PRICES:
        raise hw.Reject(f"no {message.content['item']} here")
    await ctx.send("sale", "till", message.content)
    reminder = hw.Message(type="reminder", sender="shop", to="customer", content=message.content)
    await ctx.protocol.send(reminder.replace(id=f"reminder-{message.id}"), delay_s=3600)


@till.on("sale")
async def sale(message: hw.Message, ctx: hw.Context) -> None:
    total = PRICES[message.content["item"]] * message.content["count"]
    await ctx.send("bill", "customer", {"total": total})
